"""What a launch plan may hold: the schema claudebox/1, key by key."""

from claudebox import schema
from claudebox.plan import SCHEMA, SIDECARS, TIERS


def _mount(kind, optional=None, **fields):
    return schema.record(
        {
            "kind": schema.choice(kind),
            **fields,
            "target": schema.absolute_path,
            "reason": schema.line,
        },
        optional,
    )


MOUNTS = {
    "bind": _mount("bind", source=schema.absolute_path),
    "ro-bind": _mount("ro-bind", source=schema.absolute_path),
    "symlink": _mount("symlink", source=schema.line),
    "tmpfs": _mount("tmpfs", {"size": schema.size}),
    "empty-dir": _mount("empty-dir"),
    "file": _mount("file", content=schema.text),
    "briefing": _mount("briefing"),
    "mask": _mount("mask"),
    "proc": _mount("proc"),
    "dev": _mount("dev"),
}

_VARIABLE_SOURCES = {
    "host": schema.record(
        {"name": schema.variable_name, "source": schema.choice("host")},
        {"secret": schema.boolean, "reason": schema.line},
    ),
    "profile": schema.record(
        {
            "name": schema.variable_name,
            "source": schema.choice("profile"),
            "value": schema.text,
            "reason": schema.line,
        }
    ),
    "claudebox": schema.record(
        {"name": schema.variable_name, "source": schema.choice("claudebox"), "value": schema.text}
    ),
}

check = schema.record(
    {
        "schema": schema.choice(SCHEMA),
        "project": schema.record(
            {
                "cwd": schema.absolute_path,
                "root": schema.absolute_path,
                "git": schema.or_null(
                    schema.record(
                        {
                            "dir": schema.absolute_path,
                            "common_dir": schema.absolute_path,
                            "worktree": schema.boolean,
                        }
                    )
                ),
            }
        ),
        "instance": schema.record(
            {"id": schema.line, "path": schema.absolute_path, "root": schema.absolute_path}
        ),
        "user": schema.record(
            {
                "name": schema.line,
                "uid": schema.number,
                "gid": schema.number,
                "home": schema.absolute_path,
            }
        ),
        "profile": schema.or_null(
            schema.record({"name": schema.line, "chain": schema.list_of(schema.line)})
        ),
        "network": schema.record(
            {"tier": schema.choice(*TIERS), "source": schema.line},
            {
                "sidecars": schema.list_of(schema.choice(*SIDECARS)),
                "allow": schema.list_of(schema.line),
            },
        ),
        "nix": schema.or_null(
            schema.record(
                {"socket": schema.boolean, "trust": schema.boolean, "reason": schema.line}
            )
        ),
        "bwrap": schema.record(
            {
                "path": schema.absolute_path,
                "disable_userns": schema.or_null(schema.boolean),
                "bind_fd": schema.boolean,
            }
        ),
        "limits": schema.record(
            {
                "processes": schema.or_null(schema.count),
                "memory": schema.or_null(schema.size),
                "tmp": schema.or_null(schema.size),
            }
        ),
        "packages": schema.list_of(
            schema.record(
                {
                    "reference": schema.line,
                    "paths": schema.list_of(schema.absolute_path),
                    "reason": schema.line,
                }
            )
        ),
        "env": schema.list_of(schema.by_key("source", _VARIABLE_SOURCES)),
        "mounts": schema.list_of(schema.by_key("kind", MOUNTS)),
        "hide": schema.list_of(schema.record({"pattern": schema.line, "reason": schema.line})),
        "command": schema.list_of(schema.text),
        "notes": schema.list_of(schema.line),
    }
)
