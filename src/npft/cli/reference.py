"""The reference of the command line in Markdown: ``python -m npft.cli.reference > docs/cli.md``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from npft.cli import cli

HEAD = """\
# The command line

Every command with its arguments and options, as `npft COMMAND --help` has them. This page is made
by `python -m npft.cli.reference > docs/cli.md`.
"""


def markdown() -> str:
    """The whole page."""
    sections = [HEAD]
    for path, command in _commands(cli, ["npft"]):
        sections.append("\n".join(_section(path, command)) + "\n")
    return "\n".join(sections)


def _commands(command: click.Command, path: list[str]) -> Iterator[tuple[str, click.Command]]:
    """The command and all below it, in the order of the help."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _commands(below, [*path, name])


def _section(path: str, command: click.Command) -> Iterator[str]:
    yield f"## {path}\n"
    arguments = [_placeholder(p) for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    below = "COMMAND" if isinstance(command, click.Group) else ""
    words = [path, "[OPTIONS]" if options else "", *arguments, below]
    yield f"    {' '.join(word for word in words if word)}"
    for paragraph in (command.help or "").split("\n\n"):
        yield "\n" + " ".join(paragraph.split())
    if options:
        yield "\n| option | |\n| --- | --- |"
        yield from (f"| {_flags(option)} | {_meaning(option)} |" for option in options)


def _placeholder(parameter: click.Parameter) -> str:
    if isinstance(parameter.type, click.Choice):
        return "|".join(map(str, parameter.type.choices))
    return parameter.metavar or (
        (parameter.name or "").upper()
        if isinstance(parameter, click.Argument)
        else parameter.type.name.upper()
    )


def _flags(option: click.Option) -> str:
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    shown = names if option.is_flag else f"{names} {_placeholder(option)}"
    return f"`{shown}`".replace("|", "\\|")


def _meaning(option: click.Option) -> str:
    parts = [option.help or ""]
    if option.show_default:
        default = option.default
        parts.append(f"default {', '.join(default) if isinstance(default, tuple) else default}")
    if option.required:
        parts.append("required")
    if option.multiple and "repeatable" not in parts[0]:
        parts.append("repeatable")
    return "; ".join(parts).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
