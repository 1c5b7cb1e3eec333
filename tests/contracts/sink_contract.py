"""What every sink must do. A sink's test module inherits the class that fits and fills it in::

class TestMySink(DurableSinkContract):
    import_path = "my_package.my_sink:MySink"

    def steps(self, sink, directory): ...
    def events(self, sink, directory): ...

    def fallen_events(self, sink, directory): ...
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from contracts import fake_run
from contracts.forked import Child

from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import Detail
from sparsitywatch.sinks.base import Sink

STEPS = range(0, 201, 25)
TESTS = Path(fake_run.__file__).parents[1]


class SinkContract:
    """Any sink."""

    #: module:class of the sink, called with a directory by ``make``
    import_path: str

    def make(self, directory: Path) -> Sink:
        module, _, name = self.import_path.partition(":")
        return getattr(import_module(module), name)(directory)

    def steps(self, sink: Sink, directory: Path) -> list[int]:
        """Steps of the records that it holds, in their order."""
        raise NotImplementedError

    def events(self, sink: Sink, directory: Path) -> list[tuple[str, int]]:
        """(series, detected step) of the events that it holds, by step."""
        raise NotImplementedError

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return tmp_path / "run" / "sparsitywatch"

    @pytest.fixture
    def sink(self, directory: Path) -> Sink:
        return self.make(directory)

    @staticmethod
    def feed(sink: Sink, steps: range, *, last_step: int = 200) -> None:
        """Records at these steps, each event with the record that it was seen in."""
        events = {event.detected_step // 25 * 25: event for event in fake_run.events(last_step)}
        for step in steps:
            sink.write(*fake_run.look(step, last_step=last_step))
            if step in events:
                sink.event(replace(events[step], detected_step=step))
            sink.deliver()

    def session(self, sink: Sink, steps: range, initial_step: int = 0) -> None:
        """A session with records at these steps."""
        sink.open(fake_run.run_info(initial_step))
        self.feed(sink, steps)
        sink.close()

    def test_keeps_everything_in_order(self, sink: Sink, directory: Path) -> None:
        sink.close()  # which may come before open, and again
        self.session(sink, STEPS)
        sink.close()
        assert self.steps(sink, directory) == list(STEPS)
        assert self.events(sink, directory) == [
            ("value/reliance", 50),
            ("near_zero/initial_0.1", 100),
        ]

    def test_a_model_that_changes_in_mid_run_loses_nothing(
        self, sink: Sink, directory: Path
    ) -> None:
        run = fake_run.run_info()
        sink.open(run)
        self.feed(sink, range(0, 76, 25))
        sink.renew(replace(run, ledger=run.ledger[:1]))
        self.feed(sink, range(100, 201, 25))
        sink.close()
        assert self.steps(sink, directory) == list(STEPS)
        assert len(self.events(sink, directory)) == 2

    def test_a_run_without_records(self, sink: Sink, directory: Path) -> None:
        self.session(sink, range(0))
        assert self.steps(sink, directory) == []
        assert self.events(sink, directory) == []

    def test_nothing_is_taken_outside_of_a_session(self, sink: Sink, directory: Path) -> None:
        look, event = fake_run.look(25), fake_run.events()[0]
        with pytest.raises(StateError, match="it is closed"):
            sink.write(*look)
        sink.open(fake_run.run_info())
        sink.write(*fake_run.look(0))
        sink.close()
        files = sorted(directory.rglob("*")) if directory.exists() else []
        with pytest.raises(StateError, match="it is closed"):
            sink.write(*look)
        with pytest.raises(StateError, match="it is closed"):
            sink.event(event)
        sink.close()
        assert self.steps(sink, directory) == [0]
        assert self.events(sink, directory) == []
        assert files == (sorted(directory.rglob("*")) if directory.exists() else [])

    def test_open_twice_is_refused(self, sink: Sink, directory: Path) -> None:
        sink.open(fake_run.run_info())
        self.feed(sink, range(0, 26, 25))
        with pytest.raises(StateError, match="close"):
            sink.open(fake_run.run_info())
        sink.close()
        assert self.steps(sink, directory) == [0, 25]

    def test_a_record_with_little_in_it(self, sink: Sink, directory: Path) -> None:
        parts = ("curve", "essential_sparsity", "dormant", "reliance")
        bare = fake_run.without(fake_run.look(25)[0], *parts)
        fake_run.write_to(sink, [(replace(bare, layers=()), Detail())])
        assert self.steps(sink, directory) == [25]


class KeepingSinkContract(SinkContract):
    """A sink that can take back what it was given."""

    def fallen_events(self, sink: Sink, directory: Path) -> list[str]:
        """Series of the events that it shows as fallen back."""
        raise NotImplementedError

    @pytest.mark.slow
    @pytest.mark.parametrize("initial_step", [25, 50, 60, 100, 200])
    def test_open_drops_a_future_that_was_lost(
        self, sink: Sink, directory: Path, initial_step: int
    ) -> None:
        self.session(sink, STEPS)
        self.session(sink, range(0), initial_step)
        kept = [step for step in STEPS if step <= initial_step]
        assert self.steps(sink, directory) == kept
        assert [step for _, step in self.events(sink, directory)] == [
            step for step in (50, 100) if step <= initial_step
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("initial_step", [100, 125, 150, 175])
    def test_open_drops_what_was_learned_in_a_lost_future(
        self, sink: Sink, directory: Path, initial_step: int
    ) -> None:
        event = replace(fake_run.events(200)[1], detected_step=100)
        sink.open(fake_run.run_info())
        self.feed(sink, range(0, 126, 25))
        sink.write(*fake_run.look(150, last_step=200))
        sink.event(fake_run.fallen(event, 150))
        self.feed(sink, range(175, 201, 25))
        sink.close()
        assert self.fallen_events(sink, directory) == [event.series]
        self.session(sink, range(0), initial_step)
        kept = [event.series] if initial_step >= 150 else []
        assert self.fallen_events(sink, directory) == kept

    def test_at_step_0_nothing_is_kept(self, sink: Sink, directory: Path) -> None:
        for _ in range(2):
            self.session(sink, STEPS)
        assert self.steps(sink, directory) == list(STEPS)
        assert [step for _, step in self.events(sink, directory)] == [50, 100]

    def test_a_resumed_run_neither_repeats_nor_loses_a_step(
        self, sink: Sink, directory: Path
    ) -> None:
        self.session(sink, range(0, 126, 25))
        for initial_step in (100, 50, 50):
            self.session(sink, range(initial_step + 25, 176, 25), initial_step)
        self.session(sink, range(200, 201), 175)
        assert self.steps(sink, directory) == list(STEPS)
        assert [step for _, step in self.events(sink, directory)] == [50, 100]


class DurableSinkContract(KeepingSinkContract):
    """A sink whose records outlive the process, in a local directory."""

    #: modules that are not imported with it
    unneeded = ("torch", "matplotlib")

    #: begins the program of a child process; ``sink`` is open in it
    program = """
import os, signal, sys, warnings
warnings.simplefilter("error")
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from contracts import fake_run
from sparsitywatch.errors import StateError
from importlib import import_module
from pathlib import Path
module, _, name = sys.argv[2].partition(":")
sink = getattr(import_module(module), name)(Path(sys.argv[3]))
sink.open(fake_run.run_info(int(sys.argv[4])))
"""

    def run_child(
        self, program: str, directory: Path, initial_step: int = 0
    ) -> tuple[int, str, str]:
        given = (TESTS, self.import_path, directory, initial_step)
        return Child(self.program + program, *given).communicate()

    def test_what_is_no_local_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"local path, got 's3://bucket/run'"):
            self.make("s3://bucket/run")
        (tmp_path / "file").write_text("")
        sink = self.make(tmp_path / "file")
        with pytest.raises(ConfigurationError, match=r"`directory` .* written to, got '.*file'"):
            sink.open(fake_run.run_info())
        with pytest.raises(StateError, match="it is closed"):
            sink.write(*fake_run.look(0))

    @pytest.mark.slow
    def test_importing_it_draws_in_nothing_large(self) -> None:
        module = self.import_path.partition(":")[0]
        program = f"import sys, {module}; print({set(self.unneeded)} & set(sys.modules))"
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert child.stdout == "set()\n"

    @pytest.mark.slow
    def test_what_a_call_was_given_survives_a_kill_and_is_gone_on_with(
        self, directory: Path
    ) -> None:
        for initial_step, first in ((0, 0), (50, 75), (100, 125)):
            code, _, errors = self.run_child(
                f"""
for step in range({first}, {first} + 76, 25):
    sink.write(*fake_run.look(step, last_step=200))
    if ({first}, step) == (75, 100):
        sink.event(replace(fake_run.events()[0], detected_step=100))
os.kill(os.getpid(), signal.SIGKILL)
""",
                directory,
                initial_step,
            )
            assert code == -9, errors
        sink = self.make(directory)
        assert self.steps(sink, directory) == list(STEPS)
        assert self.events(sink, directory) == [("value/reliance", 100)]

    @pytest.mark.slow
    def test_an_exit_without_close_loses_nothing(self, directory: Path) -> None:
        program = "for step in (0, 25): sink.write(*fake_run.look(step, last_step=200))"
        given = (str(TESTS), self.import_path, str(directory), "0")
        child = subprocess.run(  # it ends as Python does
            [sys.executable, "-W", "error", "-c", self.program + program, *given],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (child.returncode, child.stderr) == (0, "")
        assert self.steps(self.make(directory), directory) == [0, 25]

    @pytest.mark.slow
    def test_a_forked_child_neither_writes_nor_hangs(self, directory: Path) -> None:
        code, _, errors = self.run_child(
            """
sink.write(*fake_run.look(0, last_step=200))
child = os.fork()
if child == 0:
    for step in range(25, 1000, 25):
        try:
            sink.write(*fake_run.look(step, last_step=200))
        except StateError as error:
            assert "Attach the watch in the process that trains" in str(error), error
        else:
            raise AssertionError("a forked child may write")
    sink.close()
    sys.exit(0)  # runs what is registered for the exit
_, status = os.waitpid(child, 0)
assert status == 0, status
sink.write(*fake_run.look(25, last_step=200))
sink.close()
""",
            directory,
        )
        assert (code, errors) == (0, "")
        assert self.steps(self.make(directory), directory) == [0, 25]
