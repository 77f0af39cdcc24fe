//go:build ignore

// Reads one state as JSON on stdin the way the Go library does, by encoding/json into its State, and prints one JSON line
// per node, parents first: does Go read what asteps wrote? Standard library only.
//
//	go run read.go < state.json
//
// A line holds path (names from the root's children down, as a list), the depth-first "n", name, info as compact JSON text
// (keys sorted, numbers as float64: what Go makes of them), errs, startedAt and doneAt (RFC 3339 with nanoseconds in UTC, or
// null), children (how many), and what Go's State answers: failed, succeeded, proceeding, started. Unknown keys are
// ignored, as by the library. Exit code 1 and a message on stderr if Go refuses the JSON.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// The keys and types of the library's State. Of two keys that differ in case only, encoding/json takes both for the same.
type State struct {
	Name      string      `json:"name"`
	Info      interface{} `json:"info"`
	Errs      []string    `json:"errs"`
	StartedAt *time.Time  `json:"startedAt"`
	DoneAt    *time.Time  `json:"doneAt"`
	States    []*State    `json:"states"`
}

type line struct {
	N          int      `json:"n"`
	Path       []string `json:"path"`
	Name       string   `json:"name"`
	Info       string   `json:"info"`
	Errs       []string `json:"errs"`
	StartedAt  *string  `json:"startedAt"`
	DoneAt     *string  `json:"doneAt"`
	Children   int      `json:"children"`
	Failed     bool     `json:"failed"`
	Succeeded  bool     `json:"succeeded"`
	Proceeding bool     `json:"proceeding"`
	Started    bool     `json:"started"`
}

func utc(t *time.Time) *string {
	if t == nil {
		return nil
	}
	text := t.UTC().Format(time.RFC3339Nano)
	return &text
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "read.go:", err)
	os.Exit(1)
}

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		fail(err)
	}
	var root State
	if err := json.Unmarshal(text, &root); err != nil {
		fail(err)
	}
	out := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	n := 0
	var print func(s *State, path []string)
	print = func(s *State, path []string) {
		info, err := json.Marshal(s.Info)
		if err != nil {
			fail(err)
		}
		errs := s.Errs
		if errs == nil {
			errs = []string{}
		}
		failed := s.DoneAt != nil && len(errs) > 0
		if err := encoder.Encode(line{n, path, s.Name, string(info), errs, utc(s.StartedAt), utc(s.DoneAt), len(s.States),
			failed, s.DoneAt != nil && !failed, s.StartedAt != nil && s.DoneAt == nil, s.StartedAt != nil}); err != nil {
			fail(err)
		}
		n++
		for _, child := range s.States {
			if child == nil {
				fail(fmt.Errorf("a null among the states of %q", path))
			}
			print(child, append(path[:len(path):len(path)], child.Name))
		}
	}
	print(&root, []string{})
	if err := out.Flush(); err != nil {
		fail(err)
	}
}
