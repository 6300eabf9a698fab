"""What options accept; an error says what is allowed."""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import click


class Name(click.ParamType):
    """One of some names; a mistyped one gets the nearest as a suggestion."""

    def __init__(self, kind: str, allowed: Callable[[], Iterable[str]]):
        self.name, self.allowed = kind, allowed

    def convert(self, value, param, ctx):
        allowed = list(self.allowed())
        if value in allowed:
            return value
        self.fail(unknown(self.name, value, allowed), param, ctx)


class Names(Name):
    """Several names, separated by commas."""

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        names = [super(Names, self).convert(part.strip(), param, ctx) for part in value.split(",")]
        return tuple(dict.fromkeys(names))


class Positive(click.ParamType):
    """A finite number above zero."""

    name = "number"

    def convert(self, value, param, ctx):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (0 < number < math.inf):
            self.fail(f"{value!r} is not a finite number above 0.", param, ctx)
        return number


class Layers(click.ParamType):
    """Widths of the hidden layers, separated by commas."""

    name = "widths"

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of positive integers separated by commas, such as 32,32.", param, ctx)
        return tuple(int(part) for part in parts)


class Picture(click.Path):
    """A file to draw to."""

    name = "file"
    formats = (".png", ".pdf", ".svg")

    def __init__(self):
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value, param, ctx):
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix not in self.formats:
            self.fail(f"{str(path)!r} must end in one of {', '.join(self.formats)}.", param, ctx)
        if importlib.util.find_spec("matplotlib") is None:  # before the run, not after it
            raise click.ClickException("--plot needs matplotlib: pip install 'sciml_opt[cli]'")
        return path


class Group(click.Group):
    """A command group that suggests the nearest command."""

    def resolve_command(self, ctx, args):
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(unknown("command", args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


def unknown(kind: str, value: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {value!r}.{hint} Allowed: {', '.join(allowed)}."
