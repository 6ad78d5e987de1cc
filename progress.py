"""How a run is shown in a terminal: a bar for each stage with its loss and the time left. Nothing else prints steps."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from headlift.values import Step


class StepProgress:
    """A context in which `show(step)` draws the bars; quiet, it draws nothing."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StepProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, step: Step) -> None:
        """Draw one step of an optimisation."""
        task = self._tasks.get(step.stage)
        if task is None:
            for earlier in self._tasks.values():
                self._bars.stop_task(earlier)
            task = self._tasks[step.stage] = self._bars.add_task(step.stage, total=step.total, losses="")
        losses = "  ".join(f"{name} {value:.4f}" for name, value in list(step.losses.items())[:3])
        self._bars.update(task, completed=step.index, total=step.total, losses=losses)

    def note(self, text: str) -> None:
        """A line above the bars."""
        if not self._bars.disable:
            self._bars.console.print(text, markup=False, highlight=False)
