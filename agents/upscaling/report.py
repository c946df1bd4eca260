"""The report of `skipdiff upscale`: one line for each event, and a summary at the end."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ddpm.util.checks import counted
from ddpm.util.errors import one_line
from ddpm.util.progress import say
from skipdiff_env.upscaler import Upscaled

# Plain data; "status" is the name of the event.
Event = dict[str, Any]


@dataclass
class Report:
    """A report that counts and prints events.

    Attributes:
        as_json: whether to print each event as JSON.
        done: number of results that were written.
        skipped: number of results that existed and were kept.
        forwards: number of forwards for all results.
        failures: the errors, one line each.
    """

    as_json: bool
    done: int = 0
    skipped: int = 0
    forwards: float = 0
    failures: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def note(self, message: str) -> None:
        """Report a note, which is not an error."""
        self.tell({"status": "note", "message": one_line(message)})

    def fail(self, source: object, error: object, target: Path | None = None) -> None:
        """Report a picture that cannot be enlarged; `error` names it."""
        place = None if target is None else str(target)
        self.tell({"status": "failed", "source": str(source), "target": place, "error": one_line(error)})

    def skip(self, source: Path, target: Path) -> None:
        """Report a result that exists and is kept."""
        self.tell({"status": "skipped", "source": str(source), "target": str(target)})

    def finish(
        self, source: Path, target: Path, shape: Sequence[int], frames: int, result: Upscaled, notes: list[str]
    ) -> None:
        """Report a result of this shape, (H, W, 3), that was written."""
        event: Event = {
            "status": "done", "source": str(source), "target": str(target), "width": shape[1], "height": shape[0],
            "frames": frames, "start": result.start, "forwards": round(result.nfe, 3),
            "seconds": round(result.seconds, 3), "notes": notes,
        }  # fmt: skip
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Count an event and print it."""
        status = event["status"]
        if status == "note":
            say(f"Note: {event['message']}")
            return
        if status == "failed":
            self.failures.append(event["error"])
            say(f"Error: {event['error']}")
        elif status == "skipped":
            self.skipped += 1
        elif status == "done":
            self.done += 1
            self.forwards += event["forwards"]
            for note in event["notes"]:
                self.note(f"{event['target']}: {note}")
        if self.as_json:
            click.echo(json.dumps(event))

    def close(self) -> None:
        """Print the summary, with the failures last."""
        seconds = time.perf_counter() - self.began
        summary = {
            "status": "summary", "done": self.done, "skipped": self.skipped, "failed": len(self.failures),
            "forwards": round(self.forwards, 3), "seconds": round(seconds, 3),
        }  # fmt: skip
        if self.as_json:
            click.echo(json.dumps(summary))
        elif self.done or self.skipped:
            parts = []
            if self.done:
                parts = [
                    f"{counted(self.done, 'picture')}, {counted(self.forwards / self.done, 'forward')} each",
                    f"{seconds / self.done:.2f} s each",
                ]
            if self.skipped:
                parts.append(f"{self.skipped} skipped, as they exist")
            click.echo(", ".join(parts))
        if self.failures and self.done + self.skipped:
            say(f"{len(self.failures)} failed:")
            for message in self.failures:
                say(f"  {message}")


class Recorder(Report):
    """A report that keeps its events for a report in another process."""

    def __init__(self) -> None:
        super().__init__(as_json=False)
        self.events: list[Event] = []

    def tell(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)
