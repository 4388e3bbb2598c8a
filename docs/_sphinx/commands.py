"""The page of the command line, made from the commands themselves."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

MARK = "<!-- every command, from typer -->"


def describe_commands() -> str:
    """Write every command of `eah-interp` with its arguments and options.

    Returns:
        Markdown, with a heading for each command.
    """
    import typer

    from eah_interp.cli import app

    root = typer.main.get_command(app)
    parts = [_describe(path, command) for path, command in walk(root, "eah-interp")]
    return "\n\n".join(parts)


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and those below it, each with the words that call it."""
    yield path, command
    for name, below in sorted(getattr(command, "commands", {}).items()):
        yield from walk(below, f"{path} {name}")


def _describe(path: str, command: Any) -> str:
    level = "#" * (1 + len(path.split()))
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = " ".join(
        [
            path,
            *(["[OPTIONS]"] if options else []),
            *map(_argument_usage, arguments),
            *(["COMMAND"] if getattr(command, "commands", None) else []),
        ]
    )
    parts = [f"{level} {path}", f"```text\n{usage}\n```", _prose(command.help or "")]
    if arguments:
        rows = [(f"`{_metavar(p)}`", _meaning(p)) for p in arguments]
        parts.append(_table(("argument", "meaning"), rows))
    if options:
        rows = [(_flags(p), _meaning(p)) for p in options]
        parts.append(_table(("option", "meaning"), rows))
    return "\n\n".join(filter(None, parts))


def _prose(text: str) -> str:
    """Set examples apart from the prose, as `--help` does."""
    from eah_interp.cli.app import split_examples

    prose, examples = split_examples(text)
    return "\n\n".join([prose, "\n".join(f"    {one}" for one in examples)]).strip()


def _argument_usage(parameter: Any) -> str:
    name = _metavar(parameter) + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _flags(parameter: Any) -> str:
    names = ", ".join(f"`{n}`" for n in [*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} `{_value(parameter)}`"


def choices_of(parameter: Any) -> tuple[str, ...]:
    """List the values that a parameter takes; none where they are not counted."""
    described = getattr(parameter, "type_descriptor", None)  # typer's own, since 0.29
    if described is None:
        return tuple(getattr(parameter.type, "choices", ()))
    if get_origin(described.annotation) is not Literal:
        return ()
    return tuple(map(str, get_args(described.annotation)))


def _value(parameter: Any) -> str:
    choices = choices_of(parameter)
    if parameter.metavar:
        return str(parameter.metavar).replace("|", "\\|")
    return "\\|".join(choices) if choices else "VALUE"


def _meaning(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", None) or "").split())
    default = parameter.default
    unsaid = default is None or default is False or default == [] or callable(default)
    if not unsaid and parameter.show_default and "nset" not in type(default).__name__:
        text += f" Default: `{default}`."
    if parameter.required and parameter.param_type_name == "option":
        text += " Required."
    return text.replace("|", "\\|").strip()


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)


def fill_page(_app: Any, _page: str, content: list[str]) -> None:
    """Put the commands where a page asks for them."""
    if MARK in content[0]:
        content[0] = content[0].replace(MARK, describe_commands())


def setup(app: Any) -> dict[str, bool]:
    """Connect it."""
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
