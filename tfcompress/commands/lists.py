"""tfcompress methods and recipes: what there is to choose from."""

import inspect

from tfcompress.commands import Result


def recipes(name: str | None) -> Result:
    """The shipped recipes, or the text of one."""
    from tfcompress.recipes import file

    if name is None:
        found = file.shipped()
        width = max(map(len, found))
        data = {"recipes": [{"name": key, "about": about} for key, about in found.items()]}
        return Result(["\n".join(f"{key:{width}}  {about}" for key, about in found.items())], data)
    where, text = file.text_of(name)
    return Result([text.rstrip()], {"name": where, "text": text, "recipe": file.parse(text, f"recipe {where!r}")})


def methods(name: str | None) -> Result:
    """All methods, or the arguments of one."""
    from tfcompress.recipes import registry

    known = registry.methods()
    chosen = list(known) if name is None else [registry.find(name)]
    rows = [_describe(full, known[full]) for full in chosen]
    if name is not None:
        doc = inspect.getdoc(known[chosen[0]]) or ""
        lines = [f"{chosen[0]}{_signature(known[chosen[0]])}", "", doc, "", "In a recipe file:", "", rows[0]["yaml"]]
        return Result(["\n".join(lines)], rows[0])
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:{width}}  {row['purpose']}" for row in rows]
    return Result(["\n".join(lines)], {"methods": rows})


def _describe(full: str, kind: type) -> dict:
    from tfcompress.recipes import registry

    parameters = registry.arguments(kind)
    needed = [key for key, p in parameters.items() if p.default is p.empty]
    yaml = f"- method: {full}" + "".join(
        f"\n  {'arguments:' if i == 0 else ''}\n    {key}: ..." for i, key in enumerate(needed)
    )
    return {
        "name": full,
        "short": registry.short(full.split(".")[1]),
        "papers": list(getattr(kind, "papers", ())),
        "purpose": (inspect.getdoc(kind) or "").split("\n")[0],
        "trains": bool(getattr(kind, "trains", True)),
        "arguments": {key: None if p.default is p.empty else repr(p.default) for key, p in parameters.items()},
        "needed": needed,
        "yaml": "\n".join(line for line in yaml.split("\n") if line.strip()),
    }


def _signature(kind: type) -> str:
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(kind).parameters.values()]
    return str(inspect.Signature(plain))
