//go:build ignore

// Writes go_sstate_*.json: the other state of version 4712570 of the Go library, SState, which keeps a status number and no
// times. It is made like the files of generate.go, against that version:
//
//	go run generate_sstate.go -out /path/to/tests/golden
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"

	steps "github.com/yang-zzhong/steps"
)

func main() {
	out := flag.String("out", ".", "directory for the files")
	flag.Parse()
	ok := func(s *steps.Step) { s.Succeed() }
	for name, last := range map[string]func(*steps.Step){
		"done":    ok,
		"pending": func(*steps.Step) {},
		"failed":  func(s *steps.Step) { s.Fail(errors.New("no route")) },
	} {
		state := &steps.SState{Name: "MoveToVPC"}
		s := steps.New(state)
		s.Do("initialize", ok)
		s.Do("preFlight", func(s *steps.Step) {
			s.Do("chkAccount", ok)
			s.Do("chkNetwork", last)
		})
		saved, err := json.Marshal(state)
		if err != nil {
			panic(err)
		}
		if err := os.WriteFile(filepath.Join(*out, "go_sstate_"+name+"_4712570.json"), append(saved, '\n'), 0o644); err != nil {
			panic(err)
		}
	}
}
