"""Named steps that survive anything: an asyncio-native orchestration library."""

from ._clock import Clock, SystemClock
from ._events import (
    Around,
    BodyCall,
    Event,
    InfoSaved,
    Observer,
    PassEnded,
    PassStarted,
    StepDone,
    StepFailed,
    StepPending,
    StepRetrying,
    StepStarted,
)
from ._group import Child
from ._history import Earlier, Phase
from ._operators import RunSummary, delete_run, edit_run, list_runs, load_state
from ._options import Keywords
from ._outcome import Done, Failed, Outcome, Pending
from ._pass import pending
from ._plan import Plan, Progress, Task
from ._policy import Duration, Retry
from ._run import open_run, reconcile, run
from ._state import Note, State
from ._step import Group, Step
from ._store import LeaseStore, ListStore, PromptStore, Store, StoredRun, Summary
from .errors import (
    AstepsError,
    BusyError,
    ConflictError,
    DuplicateStepError,
    Failure,
    MissingDependencyError,
    RunMismatchError,
    StateFormatError,
    StepError,
    StoreClosedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
    UsageError,
)

__all__ = [
    "Around",
    "AstepsError",
    "BodyCall",
    "BusyError",
    "Child",
    "Clock",
    "ConflictError",
    "Done",
    "DuplicateStepError",
    "Duration",
    "Earlier",
    "Event",
    "Failed",
    "Failure",
    "Group",
    "InfoSaved",
    "Keywords",
    "LeaseStore",
    "ListStore",
    "MissingDependencyError",
    "Note",
    "Observer",
    "Outcome",
    "PassEnded",
    "PassStarted",
    "Pending",
    "Phase",
    "Plan",
    "Progress",
    "PromptStore",
    "Retry",
    "RunMismatchError",
    "RunSummary",
    "State",
    "StateFormatError",
    "Step",
    "StepDone",
    "StepError",
    "StepFailed",
    "StepPending",
    "StepRetrying",
    "StepStarted",
    "Store",
    "StoreClosedError",
    "StoreError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "StoredRun",
    "Summary",
    "SystemClock",
    "Task",
    "UncertainWriteError",
    "UsageError",
    "delete_run",
    "edit_run",
    "list_runs",
    "load_state",
    "open_run",
    "pending",
    "reconcile",
    "run",
]
