"""Read a recipe file: YAML with a safe loader, overrides, paths, and errors that give file, line and key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .errors import BadInput
from .names import nearest
from .recipe import Recipe
from .resources import listing, resource

Key = tuple[str | int, ...]


def locate(path: str | Path) -> Path:
    """Return the recipe file for a file, a folder with a recipe.yaml, or the name of a shipped pair (models/digits)."""
    given = Path(path)
    for candidate in (given, resource(str(path)) if not given.is_absolute() else given):
        if candidate.is_dir() and (candidate / "recipe.yaml").is_file():
            return candidate / "recipe.yaml"
        if candidate.is_file():
            return candidate
    if given.is_dir():
        raise BadInput(f"{given}: no recipe.yaml in this folder. `edgekd init {given}` writes one to start from")
    shipped = ", ".join(f"models/{p.parent.name}" for p in listing("models", "*/recipe.yaml"))
    raise BadInput(f"{given}: no such recipe. Give a recipe file, a folder with a recipe.yaml, or one that ships: {shipped}")


def load(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe; relative paths in it become absolute. Raises BadInput."""
    file = locate(path)
    values, lines = _read(file)
    return _checked(_with_paths(values, file.parent), settings, file, lines)


def from_manifest(values: dict[str, Any], manifest: Path, settings: Sequence[str] = ()) -> Recipe:
    """Rebuild the recipe that a run's manifest carries, with overrides. Raises BadInput."""
    return _checked(values, settings, manifest, {})


def _read(file: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not a text file ({error.reason} at byte {error.start}); a recipe is YAML in UTF-8") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot read it ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise BadInput(f"{file}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{file}: a recipe is a mapping of keys (task, data, student, ...), not {type(values).__name__}")
    lines: dict[Key, int] = {}
    _note_lines(node, (), lines, file)
    return values, lines


def _note_lines(node: Any, key: Key, lines: dict[Key, int], file: Path) -> None:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.value in seen:  # YAML keeps the last silently; one of the two was not meant
                raise BadInput(
                    f"{file}:{line}: `{_dotted((*key, name.value))}` is given twice (first on line {seen[name.value]})"
                )
            seen[name.value] = line
            lines[(*key, name.value)] = line
            _note_lines(value, (*key, name.value), lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _note_lines(value, (*key, i), lines, file)


def _parse_setting(setting: str) -> tuple[Key, Any]:
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise BadInput(f"--set {setting}: write KEY=VALUE, such as --set distill.epochs=3")
    key: Key = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"--set {setting}: the value is not valid YAML; quote it if it has special characters") from None
    return key, _path_value(key, value, Path.cwd())


def _assign(values: Any, key: Key, value: Any, setting: str) -> Key:
    """Set the value at `key` in place, making mappings on the way; return the key with positions for names of items."""
    resolved: list[str | int] = []
    for i, part in enumerate(key):
        if isinstance(values, list):
            part = _position(values, part, key[:i], setting)
        resolved.append(part)
        if i == len(key) - 1:
            values[part] = value
        else:
            if isinstance(values, dict) and not isinstance(values.get(str(part)), dict | list):
                values[part] = {}
            values = values[part]
    return tuple(resolved)


def _position(values: list[Any], part: str | int, parent: Key, setting: str) -> int:
    if isinstance(part, int) and part < len(values):
        return part
    names = [v.get("name") if isinstance(v, dict) else None for v in values]
    if part in names:
        return names.index(part)
    raise BadInput(
        f"--set {setting}: `{_dotted(parent)}` is a list of {len(values)}; name an item by its position (0-{len(values) - 1})"
        + (f" or its name ({', '.join(map(str, names))})" if any(names) else "")
    )


def _with_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    def walk(value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {name: walk(v, (*key, name)) for name, v in value.items()}
        if isinstance(value, list):
            return [walk(v, (*key, i)) for i, v in enumerate(value)]
        return _path_value(key, value, folder)

    return walk(values, ())


def _path_value(key: Key, value: Any, folder: Path) -> Any:
    """Make the value absolute if the key holds a path: relative paths mean relative to where they were written."""
    if not isinstance(value, str):
        return value
    match key:
        case ("teacher" | "student", "weights" | "adapter"):
            return str((folder / value).resolve())
        case ("student", "model") if value == "teacher":
            return value  # of the teacher's kind; a folder of that name is ./teacher
        case ("teacher" | "student", "tokenizer") if (folder / value).exists():
            return str((folder / value).resolve())
        case ("teacher" | "student", "model"):
            kind, colon, rest = value.partition(":")
            if kind == "py" and colon:
                file, colon, function = rest.rpartition(":")
                return f"py:{(folder / file).resolve()}:{function}" if file else value
            if kind == "hf" and (folder / rest).exists():
                return f"hf:{(folder / rest).resolve()}"
            if kind not in {"timm", "hf", "py"} and (folder / value).exists():
                return str((folder / value).resolve())
        case ("targets", int()) if value.endswith(".toml"):
            return str((folder / value).resolve())
        case ("data", "source") | ("data", "pairs", "source"):
            # a hub id such as mnist must not be taken for a path, nor a path for a hub id
            looks_like_a_path = value.startswith((".", "/", "~")) or Path(value).suffix in {
                ".parquet",
                ".csv",
                ".jsonl",
                ".txt",
            }
            if looks_like_a_path or (folder / value).exists():
                return str((folder / Path(value).expanduser()).resolve())
    return value


def _checked(values: dict[str, Any], settings: Sequence[str], file: Path, lines: dict[Key, int]) -> Recipe:
    origins: dict[Key, str] = {}
    for setting in settings:
        key, value = _parse_setting(setting)
        origins[_assign(values, key, value, setting)] = f"--set {setting}"
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise BadInput("\n".join(_messages(error, values, file, lines, origins))) from None


def _messages(error: ValidationError, values: Any, file: Path, lines: dict[Key, int], origins: dict[Key, str]) -> Iterable[str]:
    problems = [(_without_tags(problem["loc"], values), problem) for problem in error.errors()]
    for key, problem in problems:
        if problem["type"] == "too_short" and any(k[: len(key)] == key and len(k) > len(key) for k, _ in problems):
            continue  # a list whose items are wrong is counted as empty: only the items' own errors help
        origin = next((text for k, text in origins.items() if key[: len(k)] == k or k[: len(key)] == key), None)
        line = next((lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines), None)
        where = origin or (f"{file}:{line}" if line and len(key) else str(file))
        yield f"{where}: {_sentence(problem, key, values)}"


def _without_tags(location: Iterable[str | int], values: Any) -> Key:
    """Drop the discriminator tags that pydantic puts between a key or list index and a field."""
    key: list[str | int] = []
    for part in location:
        inside = values
        known = values if isinstance(values, dict) else {}
        kinds = (known["kind"], "installed") if "kind" in known else ()
        if key and part not in known and part in ("mapping", "list", *kinds):
            continue
        key.append(part)
        if isinstance(inside, dict):
            values = inside.get(part)
        elif isinstance(inside, list) and isinstance(part, int) and part < len(inside):
            values = inside[part]
        else:
            values = None
    return tuple(key)


def _sentence(problem: Any, key: Key, values: Any) -> str:
    name = _dotted(key)
    match problem["type"]:
        case "extra_forbidden":
            known = _fields_at(key[:-1], values)
            return f"unknown key `{name}`{nearest(str(key[-1]), known)}" + (
                f"; known here: {', '.join(known)}" if known else ""
            )
        case "missing":
            return f"`{name}` is missing"
        case "value_error":
            text = str(problem["ctx"]["error"])
            return f"`{name}`: {text}" if key else text
        case "model_type" | "model_attributes_type":
            return f"`{name}`: give a mapping of keys, not {problem['input']!r}"
        case "tuple_type":
            return f"`{name}`: give a list, such as [a, b], not {problem['input']!r}"
        case "union_tag_invalid":
            context = problem["ctx"]
            known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            return f"`{name}`: unknown kind `{context['tag']}`{nearest(context['tag'], known)}; there are {', '.join(known)}"
        case "union_tag_not_found":
            return f"`{name}`: give its `kind`"
    given = problem["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) or given is None else ""
    text = problem["msg"][0].lower() + problem["msg"][1:]
    return f"`{name}`: {text}{shown}"


def _fields_at(key: Key, values: Any) -> list[str]:
    """Return the known keys of the recipe part at `key`, in their order; of the given kind, where parts come in kinds."""

    def models_in(annotation: Any) -> list[Any]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for argument in get_args(annotation) for model in models_in(argument)]

    found: list[Any] = [Recipe]
    for part in key:
        values = values[part]
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in found if part in model.model_fields]
            found = [model for field in fields for model in models_in(field.annotation)]
    kind = values.get("kind") if isinstance(values, dict) else None
    of_that_kind = [m for m in found if kind and "kind" in m.model_fields and m.model_fields["kind"].default == kind]
    return list(dict.fromkeys(name for model in of_that_kind or found for name in model.model_fields))


def _dotted(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
