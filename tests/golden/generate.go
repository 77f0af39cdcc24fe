//go:build ignore

// Writes the golden files go_*.json: what the Go library github.com/yang-zzhong/steps marshals after small flows.
//
// One source for all versions of the library that differ in what they save (see README.md beside this file): where the
// versions' methods differ, they are looked up on the value. The library itself is not kept in this repository.
//
//	git clone https://github.com/yang-zzhong/steps /tmp/steps && git -C /tmp/steps checkout 3e58fa4
//	mkdir /tmp/gen && cp generate.go /tmp/gen && cd /tmp/gen && go mod init gen
//	go mod edit -require github.com/yang-zzhong/steps@v0.0.0 -replace github.com/yang-zzhong/steps=/tmp/steps
//	go run generate.go -version 3e58fa4 -out /path/to/tests/golden
//
// Times differ from one generation to the next, and nothing else does: sleeps fix the order of concurrent children.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	steps "github.com/yang-zzhong/steps"
)

// mainVersion has the API that the library's README shows.
const mainVersion = "3e58fa4"

// What the versions name differently, looked up on the value.

func done(s *steps.Step) {
	switch v := any(s).(type) {
	case interface{ Done() *steps.Step }:
		v.Done()
	case interface{ Succeed() *steps.Step }:
		v.Succeed()
	}
}

func with(s *steps.Step, info any) *steps.Step {
	if v, ok := any(s).(interface{ With(interface{}) *steps.Step }); ok {
		return v.With(info)
	}
	any(s.State()).(interface{ With(interface{}) }).With(info)
	return s
}

func async(s *steps.Step, group string, body func()) {
	switch v := any(s).(type) {
	case interface {
		Async(string, func()) *steps.Step
	}:
		v.Async(group, body)
	case interface{ Async(func()) *steps.Step }:
		v.Async(body)
	}
}

// A pass is one run of a flow's code over a step; pass counts from 1.
type pass func(s *steps.Step, n int)

func run(name string, passes int, body pass) []byte {
	state := &steps.State{Name: name}
	return runOn(state, passes, body)
}

// runOn saves and loads between two passes, as a service that was started again would.
func runOn(state *steps.State, passes int, body pass) []byte {
	var saved []byte
	for n := 1; n <= passes; n++ {
		s := steps.New(state)
		body(s, n)
		saved = marshal(s.State())
		state = &steps.State{}
		must(json.Unmarshal(saved, state))
	}
	return saved
}

func recoverSaved(saved []byte) []byte {
	state := &steps.State{}
	must(json.Unmarshal(saved, state))
	state.Recover()
	return marshal(state)
}

func marshal(v any) []byte {
	saved, err := json.Marshal(v)
	must(err)
	return saved
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// The flows.

func ok(s *steps.Step) { done(s) }

func noteOK(info any) func(*steps.Step) {
	return func(s *steps.Step) { done(with(s, info)) }
}

func fails(why string) func(*steps.Step) {
	return func(s *steps.Step) { s.Fail(errors.New(why)) }
}

func waits(s *steps.Step) {} // marked neither done nor failed: not yet

func moveToVPC(network func(*steps.Step)) pass {
	return func(s *steps.Step, n int) {
		with(s, "move a machine to another network")
		s.Do("initialize", func(s *steps.Step) {
			s.Do("initialize CVM", noteOK("must come before the migration"))
			s.Do("initialize ENIs", noteOK(map[string]any{"count": 2, "ids": []string{"eni-1", "eni-2"}}))
		})
		s.Do("preFlight", func(s *steps.Step) {
			s.Do("chkAccount", ok)
			s.Do("chkNetwork", network)
			s.Do("chkQuota", ok)
		})
		s.Do("inFlight", func(s *steps.Step) {
			s.Do("migrateInstances", ok)
		})
	}
}

func nested(s *steps.Step, depth int, leaf func(*steps.Step)) {
	if depth == 1 {
		s.Do("d1", leaf)
		return
	}
	s.Do(fmt.Sprintf("d%d", depth), func(s *steps.Step) { nested(s, depth-1, leaf) })
}

func helloWorld(s *steps.Step) { done(s) }

type machine struct{}

func (machine) Migrate(s *steps.Step) { done(s) }

func after(ms int, f func(*steps.Step)) func(*steps.Step) {
	return func(s *steps.Step) {
		time.Sleep(time.Duration(ms) * time.Millisecond)
		f(s)
	}
}

type flow struct {
	name     string
	versions string // "" is the main one only
	make     func() []byte
}

const all = "9332992 542c4fb 3e58fa4 4712570"

func flows() []flow {
	return []flow{
		{"root_only", all, func() []byte { return run("nothing ran", 1, func(*steps.Step, int) {}) }},
		{"unnamed_root", "", func() []byte { return run("", 1, func(s *steps.Step, n int) { s.Do("a", ok) }) }},
		{"done", all, func() []byte { return run("MoveToVPC", 1, moveToVPC(ok)) }},
		{"pending", all, func() []byte { return run("MoveToVPC", 1, moveToVPC(waits)) }},
		{"failed", all, func() []byte { return run("MoveToVPC", 1, moveToVPC(fails("no route"))) }},
		{"failed_deep", "", func() []byte {
			return run("deep", 1, func(s *steps.Step, n int) { nested(s, 5, fails("boom")) })
		}},
		{"recovered", "9332992 3e58fa4", func() []byte { return recoverSaved(run("MoveToVPC", 1, moveToVPC(fails("no route")))) }},
		{"recovered_done", "", func() []byte { return recoverSaved(run("MoveToVPC", 1, moveToVPC(ok))) }},
		// The second pass would finish the waiting step.
		{"second_pass", all, func() []byte {
			return run("again", 2, func(s *steps.Step, n int) {
				s.Do("a", ok)
				s.Do("b", func(s *steps.Step) {
					with(s, fmt.Sprintf("b, pass %d", n))
					if n > 1 {
						done(s)
					}
				})
				s.Do("c", ok)
			})
		}},
		{"second_pass_nested", all, func() []byte {
			return run("MoveToVPC", 2, func(s *steps.Step, n int) {
				if n == 1 {
					moveToVPC(waits)(s, n)
				} else {
					moveToVPC(ok)(s, n)
				}
			})
		}},
		{"second_pass_failed", all, func() []byte { return run("MoveToVPC", 2, moveToVPC(fails("no route"))) }},
		// The first step is done in the second pass: what becomes of the others?
		{"second_pass_first", all, func() []byte {
			return run("again", 2, func(s *steps.Step, n int) {
				s.Do("a", func(s *steps.Step) {
					with(s, fmt.Sprintf("a, pass %d", n))
					if n > 1 {
						done(s)
					}
				})
				s.Do("b", noteOK("b ran"))
			})
		}},
		// The first step is done in the third pass, and b runs over a's stale copy.
		{"third_pass_mixup", all, func() []byte {
			return run("again", 3, func(s *steps.Step, n int) {
				s.Do("a", func(s *steps.Step) {
					with(s, fmt.Sprintf("a, pass %d", n))
					if n > 2 {
						done(s)
					}
				})
				s.Do("b", noteOK("b ran"))
			})
		}},
		{"async_done", "542c4fb 3e58fa4", func() []byte {
			return run("async", 1, func(s *steps.Step, n int) {
				s.Do("before", ok)
				async(s, "group", func() {
					s.Do("work1", after(30, noteOK("w1")))
					s.Do("work2", after(60, ok))
					s.Do("work3", after(90, func(s *steps.Step) { s.Do("inner", ok) }))
				})
				s.Do("after", ok)
			})
		}},
		// All three workers run at the same time: this version gives them one node between them.
		{"async_done", "4712570", func() []byte {
			return run("async", 1, func(s *steps.Step, n int) {
				async(s, "group", func() {
					s.Do("work1", after(40, noteOK("w1")))
					time.Sleep(10 * time.Millisecond)
					s.Do("work2", after(60, noteOK("w2")))
					time.Sleep(10 * time.Millisecond)
					s.Do("work3", after(80, noteOK("w3")))
				})
				s.Do("after", ok)
			})
		}},
		{"async_one_by_one", "4712570", func() []byte {
			return run("async", 1, func(s *steps.Step, n int) {
				async(s, "group", func() {
					s.Do("work1", ok)
					time.Sleep(20 * time.Millisecond)
					s.Do("work2", ok)
					time.Sleep(20 * time.Millisecond)
				})
				s.Do("after", ok)
			})
		}},
		// work1 ends first and is not done, work2 is done last: the root gets work2's doneAt.
		{"async_undone", "542c4fb 3e58fa4", func() []byte {
			return run("async", 1, func(s *steps.Step, n int) {
				async(s, "group", func() {
					s.Do("work1", after(20, waits))
					s.Do("work2", after(60, ok))
				})
			})
		}},
		{"async_undone_nested", "", func() []byte {
			return run("async", 1, func(s *steps.Step, n int) {
				s.Do("parent", func(s *steps.Step) {
					async(s, "group", func() {
						s.Do("work1", after(20, waits))
						s.Do("work2", after(60, ok))
					})
				})
				s.Do("next", ok)
			})
		}},
		{"async_second_pass", "", func() []byte {
			return run("async", 2, func(s *steps.Step, n int) {
				async(s, "group", func() {
					s.Do("work1", after(20, ok))
					s.Do("work2", after(60, func(s *steps.Step) {
						if n > 1 {
							done(s)
						}
					}))
				})
				s.Do("after", ok)
			})
		}},
		{"async_failed", "", func() []byte { return run("async", 1, asyncFailed) }},
		{"async_failed_recovered", "", func() []byte { return recoverSaved(run("async", 1, asyncFailed)) }},
		{"async_two_groups", "", func() []byte {
			return run("async", 1, func(s *steps.Step, n int) {
				async(s, "g", func() {
					s.Do("w", after(20, ok))
					s.Do("", after(60, ok))
				})
				async(s, "g:h", func() {
					s.Do("w", after(20, ok))
					s.Do("x:y", after(60, ok))
				})
				s.Do("g:plain", ok) // not a child of a group
			})
		}},
		{"dox", all, func() []byte {
			return run("unnamed", 1, func(s *steps.Step, n int) {
				s.DoX(noteOK("first"))
				s.Do("named", ok)
				s.DoX(noteOK("second"))
				s.DoX(func(s *steps.Step) {
					s.DoX(noteOK("inner"))
					s.DoX(waits)
				})
			})
		}},
		// A second pass over unnamed steps, the second one still waiting, the third never reached.
		{"dox_second_pass", "", func() []byte {
			return run("unnamed", 2, func(s *steps.Step, n int) {
				s.DoX(noteOK("first"))
				s.DoX(func(s *steps.Step) {
					if with(s, "second"); n > 1 {
						done(s)
					}
				})
				s.DoX(noteOK("third"))
			})
		}},
		{"dor", all, func() []byte {
			return run("by function", 1, func(s *steps.Step, n int) {
				s.DoR(helloWorld)
				s.DoR(machine{}.Migrate)
				s.DoR(func(s *steps.Step) { done(s) })
			})
		}},
		{"info", "", func() []byte {
			return run("info", 1, func(s *steps.Step, n int) {
				for i, info := range []any{
					nil, "task-1", "", []string{"10.0.0.1", "10.0.0.2"}, []string{}, []string(nil),
					map[string]any{"b": 1, "a": map[string]any{"nil": nil}}, struct {
						ID   string
						Done bool `json:"done"`
					}{"x", true},
					42, 0, -1.5, 1e21, int64(9007199254740993), true, false, []byte{0, 255}, time.Unix(1647680084, 5).UTC(),
				} {
					s.Do(fmt.Sprintf("info %d", i), noteOK(info))
				}
			})
		}},
		{"escapes", "", func() []byte {
			return run("<root> & \"co\"", 1, func(s *steps.Step, n int) {
				s.Do("\u00fcml\u00e4ut \U0001f600 \u2028", noteOK("</script> & \u2029 \\ \t \x00 \x7f"))
				s.Do("bad", fails("bytes \xff\xfe are no UTF-8"))
			})
		}},
		{"odd_names", "", func() []byte {
			return run("a/b", 1, func(s *steps.Step, n int) {
				for _, name := range []string{
					"a/b", "a.b", "a~b", "a~1b", "#0", "$end", "tab\there", " ", strings.Repeat("n", 201), strings.Repeat("\u00e4", 200),
				} {
					s.Do(name, ok)
				}
			})
		}},
		{"same_names", "", func() []byte {
			return run("twice", 1, func(s *steps.Step, n int) {
				s.Do("a", noteOK("first"))
				s.Do("a", noteOK("second"))
			})
		}},
		// Saved by the caller between two steps.
		{"root_done_early", "", func() []byte {
			var saved []byte
			run("early", 1, func(s *steps.Step, n int) {
				s.Do("a", ok)
				saved = marshal(s.State())
				s.Do("b", ok)
			})
			return saved
		}},
		// Saved while a body is running, from inside it.
		{"midway", "3e58fa4 4712570", func() []byte {
			var saved []byte
			run("midway", 1, func(root *steps.Step, n int) {
				root.Do("a", ok)
				root.Do("b", func(s *steps.Step) {
					s.Do("b1", ok)
					s.Do("b2", func(s *steps.Step) { saved = marshal(root.State()) })
				})
			})
			return saved
		}},
		{"panicked", "", func() []byte {
			return run("panicked", 1, func(s *steps.Step, n int) {
				defer func() { _ = recover() }()
				s.Do("a", ok)
				s.Do("b", func(s *steps.Step) {
					s.Do("b1", ok)
					panic("the process dies here")
				})
			})
		}},
		{"fail_then_done", "", func() []byte {
			return run("readme", 1, func(s *steps.Step, n int) {
				s.Do("chkAccount", func(s *steps.Step) {
					s.Fail(errors.New("no such account"))
					done(s)
				})
			})
		}},
		{"parent_done_over_failed", "", func() []byte {
			return run("handled", 1, func(s *steps.Step, n int) {
				s.Do("parent", func(s *steps.Step) {
					s.Do("child", fails("boom"))
					done(s)
				})
				s.Do("next", ok)
			})
		}},
		{"parent_done_over_pending", "", func() []byte {
			return run("not looked at", 1, func(s *steps.Step, n int) {
				s.Do("parent", func(s *steps.Step) {
					s.Do("child", waits)
					done(s)
				})
				s.Do("next", ok)
			})
		}},
		{"parent_failed_itself", "", func() []byte {
			return run("own", 1, func(s *steps.Step, n int) {
				s.Do("parent", func(s *steps.Step) {
					s.Do("child", ok)
					s.Fail(errors.New("all the same"))
				})
			})
		}},
		{"empty_error", "", func() []byte {
			return run("empty", 1, func(s *steps.Step, n int) { s.Do("a", fails("")) })
		}},
		{"deep40", "", func() []byte {
			return run("deep", 1, func(s *steps.Step, n int) { nested(s, 40, ok) })
		}},
		{"deep60", "", func() []byte {
			return run("deep", 1, func(s *steps.Step, n int) { nested(s, 60, ok) })
		}},
		{"times", "", func() []byte {
			at := func(zone *time.Location, s int64, ns int64) *time.Time {
				t := time.Unix(s, ns).In(zone)
				return &t
			}
			east, west := time.FixedZone("", 8*3600), time.FixedZone("", -(3*3600+1800))
			zero := time.Time{}
			last := time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
			state := &steps.State{Name: "times", StartedAt: at(east, 1647680084, 826117123), States: []*steps.State{
				{Name: "nanoseconds", StartedAt: at(east, 1647680084, 826117123), DoneAt: at(east, 1647680084, 826117124)},
				{Name: "rounds up", StartedAt: at(time.UTC, 1647680084, 999999999), DoneAt: at(time.UTC, 1647680085, 1)},
				{Name: "trimmed", StartedAt: at(east, 1647680084, 826120000), DoneAt: at(west, 1647680084, 900000000)},
				{Name: "whole second", StartedAt: at(time.UTC, 1647680084, 0), DoneAt: at(west, 1647680085, 0)},
				{Name: "before 1970", StartedAt: at(time.UTC, -1, 500000000), DoneAt: at(time.UTC, 0, 0)},
				{Name: "done before started", StartedAt: at(east, 1647680085, 0), DoneAt: at(east, 1647680084, 0)},
				{Name: "done, never started", DoneAt: at(east, 1647680084, 0)},
				{Name: "zero", StartedAt: &zero, DoneAt: &zero},
				{Name: "last", StartedAt: &last, DoneAt: &last},
			}}
			return marshal(state)
		}},
		{"k8s_status", "", k8sStatus},
	}
}

func asyncFailed(s *steps.Step, n int) {
	async(s, "group", func() {
		s.Do("work1", after(20, fails("one")))
		s.Do("work2", after(60, ok))
		s.Do("work3", after(100, fails("three")))
	})
	s.Do("after", ok)
}

// k8sStatus is not made by the library: its adapters/k8s writes the same keys into an object's status, with info
// wrapped in {"content": ...} and times in UTC by whole seconds, and building it needs the Kubernetes modules.
func k8sStatus() []byte {
	type info struct {
		Content any `json:"content,omitempty"`
	}
	type node struct {
		Name      string   `json:"name"`
		Info      info     `json:"info"`
		Errs      []string `json:"errs"`
		StartedAt *string  `json:"startedAt"`
		DoneAt    *string  `json:"doneAt"`
		States    []*node  `json:"states"`
	}
	second := func(t *time.Time) *string {
		if t == nil {
			return nil
		}
		text := t.UTC().Format(time.RFC3339)
		return &text
	}
	var convert func(*steps.State) *node
	convert = func(s *steps.State) *node {
		children := make([]*node, len(s.States))
		for i, c := range s.States {
			children[i] = convert(c)
		}
		return &node{s.Name, info{s.Info}, errsOf(s), second(s.StartedAt), second(s.DoneAt), children}
	}
	state := &steps.State{}
	must(json.Unmarshal(run("MoveToVPC", 1, moveToVPC(waits)), state))
	return marshal(convert(state))
}

// errsOf reads errs by way of JSON: the oldest version has no such field.
func errsOf(s *steps.State) []string {
	var node struct {
		Errs []string `json:"errs"`
	}
	must(json.Unmarshal(marshal(s), &node))
	return node.Errs
}

func main() {
	version := flag.String("version", mainVersion, "commit of the library that is built in: "+all)
	out := flag.String("out", ".", "directory for the files")
	flag.Parse()
	zones := map[string]*time.Location{mainVersion: time.FixedZone("CST", 8*3600), "4712570": time.UTC, "542c4fb": time.UTC,
		"9332992": time.FixedZone("CST", 8*3600)}
	if zones[*version] == nil {
		fmt.Fprintln(os.Stderr, "unknown version", *version)
		os.Exit(2)
	}
	time.Local = zones[*version]
	names := map[string]bool{}
	for _, f := range flows() {
		versions := f.versions
		if versions == "" {
			versions = mainVersion
		}
		if !strings.Contains(versions, *version) {
			continue
		}
		name := "go_" + f.name
		if *version != mainVersion {
			name += "_" + *version
		}
		if names[name] {
			panic("two flows write " + name)
		}
		names[name] = true
		must(os.WriteFile(filepath.Join(*out, name+".json"), append(f.make(), '\n'), 0o644))
	}
}
