"""What a person sees: progress while training, and the table of figures at the end."""

import contextlib
from collections.abc import Callable, Iterator

from rich import box, progress, table
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # a file or a pipe has no edge to keep to

Update = Callable[..., None]


def say(line: str) -> None:
    """Prints one line, above the progress bar if there is one."""
    console.print(line, markup=False)


@contextlib.contextmanager
def training(start: int, total: int) -> Iterator[Update]:
    """A progress bar with loss, rate and time left; on anything but a terminal, a line at each update.

    Yields:
      `(step, loss, rate)`, to be called now and then.
    """
    columns = [
        progress.TextColumn("step {task.completed}/{task.total}"),
        progress.BarColumn(bar_width=20),
        progress.TextColumn(
            "loss {task.fields[loss]}  {task.fields[rate]} steps/s", table_column=table.Column(no_wrap=True)
        ),
        progress.TextColumn("{task.fields[left]}"),
    ]
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=start, loss="-", rate="-", left="compiling")

        def update(step: int, loss: float, rate: float) -> None:
            facts = {
                "loss": f"{loss:.4g}",
                "rate": f"{rate:.3g}",
                "left": f"{_clock((total - step) / max(rate, 1e-9))} left",
            }
            bar.update(task, completed=step, **facts)
            if not console.is_terminal:
                say(f"step {step}/{total}  loss {facts['loss']}  {facts['rate']} steps/s  {facts['left']}")

        yield update


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def report(rows: dict[str, dict], titles: dict[str, str], caption: str) -> None:
    """Prints metrics beside their floor and baselines."""
    baselines = list(dict.fromkeys(name for row in rows.values() for name in row["baselines"]))
    # Narrow enough for a terminal of 80 columns.
    sheet = table.Table(
        box=box.SIMPLE_HEAD, show_edge=False, padding=0, title=caption, title_justify="left", title_style=""
    )
    sheet.add_column("", no_wrap=True)
    for name in ["samples", "real data", *baselines]:
        sheet.add_column(name, justify="right", no_wrap=True)
    for name, row in rows.items():
        mean, spread = row["floor"]
        simple = [f"{row['baselines'][b]:.3g}" if b in row["baselines"] else "" for b in baselines]
        title = titles.get(name, name.replace("_", " "))
        sheet.add_row(title, f"{row['value']:.3g}", f"{mean:.3g} ± {spread:.1g}", *simple)
    console.print(sheet)
