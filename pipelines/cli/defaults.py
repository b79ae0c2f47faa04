"""What a command does without flags: its embedded defaults, or its table of `g3pt.toml` in the working directory.

How: both become command-line words that are placed before what was typed, unless the same flag was typed. A table of
g3pt.toml applies to every call of its command; the embedded defaults only where nothing was typed but flags that say
how the work is run (--dry-run, --replace, --num-workers, --ray-address, ...). `--save-config` writes the flags of a
call into the table and does nothing else.
Ours: a table's name is the job's file name, its keys are the flags with underscores:

    [preprocess]
    source = "dir"
    input = "meshes"
    resolution = 128
"""

import dataclasses
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

CONFIG_FILE = "g3pt.toml"
SAVE_CONFIG = "--save-config"
HOW_IT_RUNS = ("dry_run", "replace", "num_workers", "ray_address", "device")  # flags that leave open what the work is
Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The work of a command that was given no flags."""

    flags: Mapping[str, Value]
    """field of the flag class -> value"""
    says: str
    """what this makes, in a few words, for the first line"""
    prepare: Callable[[Any], None] = field(default=lambda flags: None)
    """called with the parsed flags before the work starts: makes what the defaults need; not called for a dry run"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The command-line words of a call after defaults and g3pt.toml were added."""

    words: list[str]
    notice: str | None = None
    """the first line to print, which names where the added words come from"""
    defaults: Defaults | None = None
    """the embedded defaults, if they were used"""


def complete(flags_class: type, command: str, given: Sequence[str], defaults: Defaults | None) -> Call:
    """The words of `given` with those of g3pt.toml's table `command`, else with the embedded defaults if nothing was
    asked for.

    ValueError names the file and the key for a g3pt.toml that can't be read, an unknown key or a value of another kind
    than TOML's text, number or truth value.
    """
    table = read_table(flags_class, command)
    if table:
        added = {name: value for name, value in table.items() if not _is_typed(flags_class, name, given)}
        notice = f"{command}: {', '.join(added)} from {Path(CONFIG_FILE).resolve()}" if added else None
        return Call(words=[*_words(flags_class, added), *given], notice=notice)
    if defaults is None or not _says_only_how(flags_class, given):
        return Call(words=list(given))
    notice = f"{command}: no flags given, so {defaults.says} (`{SAVE_CONFIG}` writes these defaults to {CONFIG_FILE})"
    return Call(words=[*_words(flags_class, defaults.flags), *given], notice=notice, defaults=defaults)


def read_table(flags_class: type, command: str) -> dict[str, Value]:
    """The command's table of ./g3pt.toml, checked against the fields of its flag class; empty without file or table."""
    file = Path(CONFIG_FILE)
    if not file.is_file():
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig")).get(command, {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.resolve()}: not a TOML file: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{file.resolve()}: {command} must be a table, [{command}]")
    known = {f.name for f in dataclasses.fields(flags_class)}
    for name, value in table.items():
        if name not in known:
            raise ValueError(f"{file.resolve()}: [{command}] has no key {name}; remove it, or see --help for the flags")
        if not isinstance(value, (str, int, float)):
            raise ValueError(
                f"{file.resolve()}: [{command}] {name} must be text, a number, true or false, got {value!r}"
            )
    return table


def save(flags_class: type, command: str, words: Sequence[str], flags: Any) -> Path:
    """Write the flags named by `words` (parsed: `flags`) into the command's table of ./g3pt.toml; other tables and
    comments stay.

    Returns the file's absolute path.
    """
    import tomlkit

    file = Path(CONFIG_FILE).resolve()
    document = tomlkit.parse(file.read_text(encoding="utf-8-sig")) if file.is_file() else tomlkit.document()
    table = document.setdefault(command, tomlkit.table())
    for f in dataclasses.fields(flags_class):
        if _is_typed(flags_class, f.name, words):
            table[f.name] = getattr(flags, f.name)
    staged = file.with_suffix(".toml.part")
    staged.write_text(tomlkit.dumps(document), encoding="utf-8")
    staged.replace(file)
    return file


def _words(flags_class: type, values: Mapping[str, Value]) -> list[str]:
    """`--flag value` for each field; a truth value is a bare flag, a positional field the value alone."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words += [_flag(name)] if value else []
        elif name in _positional(flags_class):
            words.append(str(value))
        else:
            words += [_flag(name), str(value)]
    return words


def _is_typed(flags_class: type, name: str, words: Sequence[str]) -> bool:
    """Whether a field's flag is among the words of a command line; a positional field counts where the first word is no
    flag.
    """
    if name in _positional(flags_class):
        return bool(words) and not words[0].startswith("-")
    return any(word.partition("=")[0].replace("_", "-") == _flag(name) for word in words)


def _says_only_how(flags_class: type, words: Sequence[str]) -> bool:
    """Whether no flag among the words says what to make."""
    names = [f.name for f in dataclasses.fields(flags_class) if f.name not in HOW_IT_RUNS]
    return not any(_is_typed(flags_class, name, words) for name in names) and all(
        _is_known(flags_class, word) for word in words if word.startswith("--")
    )


def _is_known(flags_class: type, word: str) -> bool:
    return word.partition("=")[0].replace("_", "-") in {_flag(f.name) for f in dataclasses.fields(flags_class)}


def _positional(flags_class: type) -> set[str]:
    """Fields that are given without a flag."""
    hints = typing.get_type_hints(flags_class, include_extras=True)
    marked = typing.get_args(tyro.conf.Positional[str])[1:]
    return {name for name, hint in hints.items() if typing.get_args(hint)[1:] == marked}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
