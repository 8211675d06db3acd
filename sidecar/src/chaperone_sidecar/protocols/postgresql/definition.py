"""What statements count as that define, alter, drop, or give rights to things of the database.

Defining and altering is `schema`. Code that is stored to be run is `execute_code`, what reaches out of the database
`external_io`, what changes rights `privilege`, what loses data `destroy`. CASCADE reaches objects that the text does
not name, so with it the statement is unknown, too.
"""

from __future__ import annotations

from typing import Any, Final

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.postgresql import relations
from chaperone_sidecar.protocols.postgresql.objects import (
    NAMED,
    OUTSIDE,
    QUALIFIED,
    RELATIONS,
    RIGHTS,
    TABLE_LOSSES,
    TABLE_OUTSIDE,
    TABLE_RIGHTS,
    more,
    named,
    qualified,
)
from chaperone_sidecar.protocols.postgresql.query import into, new_relation
from chaperone_sidecar.protocols.postgresql.walk import Handler, Node, Scope, Walk, handles

_CASCADE: Final = "CASCADE reaches objects that the statement does not name; name each one instead."


def _register_tables() -> None:
    for kind, (effects, prefix, field) in NAMED.items():
        handles(kind)(_by_name(effects, prefix, field))
    for kind, (several, parts) in QUALIFIED.items():
        handles(kind)(_by_parts(several, parts))


def _by_name(effects: tuple[Effect, ...], prefix: str, field: str) -> Handler:
    def note(walk: Walk, node: Node, scope: Scope) -> None:
        for effect in effects:
            walk.add(effect, f"{prefix}:{node.get(field, '')}")

    return note


def _by_parts(effects: tuple[Effect, ...], field: str) -> Handler:
    def note(walk: Walk, node: Node, scope: Scope) -> None:
        for effect in effects:
            walk.add(effect, qualified(node[field]))

    return note


_register_tables()


# --- dropping -------------------------------------------------------------------------------------------------------


@handles("DropStmt")
def _drop(walk: Walk, node: Node, scope: Scope) -> None:
    kind = node["removeType"]
    for item in node["objects"]:
        objects = _named(walk, kind, item)
        walk.add(Effect.DESTROY, *objects)
        if kind in RIGHTS or kind in OUTSIDE:
            for effect in more(kind):
                walk.add(effect, *objects)
    _cascade(walk, node)


def _named(walk: Walk, kind: str, node: Node) -> tuple[str, ...]:
    """One of several objects; if it can't be told, the others still count."""
    try:
        return named(kind, node)
    except relations.Ambiguous as error:
        walk.unknown(str(error))
        return ()


@handles("TruncateStmt")
def _truncate(walk: Walk, node: Node, scope: Scope) -> None:
    for table in node["relations"]:
        walk.add(Effect.DESTROY, *walk.resolve(table["RangeVar"]))
    _cascade(walk, node)


@handles("DropOwnedStmt")
def _drop_owned(walk: Walk, node: Node, scope: Scope) -> None:
    for role in node["roles"]:
        walk.add(Effect.DESTROY, _role(role["RoleSpec"]))
        walk.add(Effect.PRIVILEGE, _role(role["RoleSpec"]))


def _cascade(walk: Walk, node: Node) -> None:
    if node.get("behavior") == "DROP_CASCADE":
        walk.unknown(_CASCADE)


# --- rights ---------------------------------------------------------------------------------------------------------


def _role(node: Node) -> str:
    return f"role:{node.get('rolename') or node['roletype'].removeprefix('ROLESPEC_').lower()}"


@handles("AlterRoleStmt", "AlterRoleSetStmt")
def _alter_role(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.PRIVILEGE, _role(node["role"]) if "role" in node else "role:all")


@handles("DropRoleStmt")
def _drop_roles(walk: Walk, node: Node, scope: Scope) -> None:
    for role in node["roles"]:
        walk.add(Effect.PRIVILEGE, _role(role["RoleSpec"]))
        walk.add(Effect.DESTROY, _role(role["RoleSpec"]))


@handles("GrantRoleStmt")
def _grant_role(walk: Walk, node: Node, scope: Scope) -> None:
    for role in node["granted_roles"]:
        walk.add(Effect.PRIVILEGE, f"role:{role['AccessPriv']['priv_name']}")


@handles("ReassignOwnedStmt")
def _reassign_owned(walk: Walk, node: Node, scope: Scope) -> None:
    for role in [*node["roles"], {"RoleSpec": node["newrole"]}]:
        walk.add(Effect.PRIVILEGE, _role(role["RoleSpec"]))


@handles("GrantStmt")
def _grant(walk: Walk, node: Node, scope: Scope) -> None:
    if node["targtype"] == "ACL_TARGET_ALL_IN_SCHEMA":
        for item in node["objects"]:
            walk.add(Effect.PRIVILEGE, f"schema:{item['String']['sval']}")
    else:
        for item in node.get("objects", ()):
            walk.add(Effect.PRIVILEGE, *_named(walk, node["objtype"], item))
    if "objects" not in node:
        walk.add(Effect.PRIVILEGE, "default_privileges:all")


@handles("AlterDefaultPrivilegesStmt")
def _default_privileges(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.PRIVILEGE, "default_privileges:all")


@handles("AlterSystemStmt")
def _alter_system(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.PRIVILEGE, f"setting:{node['setstmt'].get('name', 'all').lower()}")


@handles("SecLabelStmt")
def _security_label(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.PRIVILEGE, *named(node["objtype"], node["object"]))


@handles("CreatePolicyStmt", "AlterPolicyStmt")
def _policy(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.PRIVILEGE, *walk.resolve(node["table"]))
    return [node.get("qual"), node.get("with_check")]


@handles("AlterOwnerStmt")
def _owner(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.PRIVILEGE, *_altered(node, node["objectType"]))


# --- altering any kind of thing -------------------------------------------------------------------------------------


def _altered(node: Node, kind: str) -> tuple[str, ...]:
    if "relation" in node:
        return relations.relation(node["relation"])
    if "object" in node:
        return named(kind, node["object"])
    return (f"{kind.removeprefix('OBJECT_').lower()}:{node.get('subname', '')}",)  # RENAME of a role or database


@handles("RenameStmt")
def _rename(walk: Walk, node: Node, scope: Scope) -> None:
    kind = node["renameType"]
    objects = _altered(node, kind)
    for effect in (Effect.SCHEMA, *more(kind)):
        walk.add(effect, *objects)
    if (
        "relation" in node and kind in RELATIONS
    ):  # the new name is an object, too: rules may allow one and not the other
        for name in objects:
            walk.add(Effect.SCHEMA, relations.join(name.partition(".")[0], node["newname"]))
    _cascade(walk, node)


@handles("AlterObjectSchemaStmt")
def _move(walk: Walk, node: Node, scope: Scope) -> None:
    kind = node["objectType"]
    objects = _altered(node, kind)
    for effect in (Effect.SCHEMA, *more(kind)):
        walk.add(effect, *objects)
    walk.add(Effect.SCHEMA, f"schema:{node['newschema']}")


@handles("AlterObjectDependsStmt")
def _depends(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.SCHEMA, *_altered(node, node["objectType"]))


@handles("CommentStmt")
def _comment(walk: Walk, node: Node, scope: Scope) -> None:
    walk.add(Effect.SCHEMA, *named(node["objtype"], node["object"]))


# --- relations ------------------------------------------------------------------------------------------------------


@handles("CreateStmt")
def _create_table(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    new_relation(walk, node["relation"])
    return [node.get(key) for key in ("tableElts", "inhRelations", "partbound", "partspec", "constraints", "options")]


@handles("CreateForeignTableStmt")
def _create_foreign_table(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.EXTERNAL_IO, f"foreign_server:{node['servername']}")
    return [{"CreateStmt": node["base"]}]


@handles("TableLikeClause")
def _like(walk: Walk, node: Node, scope: Scope) -> None:
    walk.read(walk.resolve(node["relation"]))


@handles("CreateTableAsStmt")
def _create_table_as(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    into(walk, node["into"])
    return [node["query"]]


@handles("ViewStmt")
def _view(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    new_relation(walk, node["view"])
    return [node["query"]]


@handles("AlterTableStmt")
def _alter_table(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    objects = walk.resolve(node["relation"])
    walk.add(Effect.SCHEMA, *objects)
    parts: list[Any] = []
    for item in node["cmds"]:
        command = item["AlterTableCmd"]
        kind = command["subtype"]
        for effect, kinds in (
            (Effect.PRIVILEGE, TABLE_RIGHTS),
            (Effect.DESTROY, TABLE_LOSSES),
            (Effect.EXTERNAL_IO, TABLE_OUTSIDE),
        ):
            if kind in kinds:
                walk.add(effect, *objects)
        _cascade(walk, command)
        parts.append(command.get("def"))
    return parts


@handles("PartitionCmd")
def _partition(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.SCHEMA, *walk.resolve(node["name"]))
    return [node.get("bound")]


@handles("ReplicaIdentityStmt", "ATAlterConstraint")
def _nomore(walk: Walk, node: Node, scope: Scope) -> None:
    """Parts of ALTER TABLE that name only the table's own indexes and constraints."""


@handles("IndexStmt")
def _index(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.SCHEMA, *walk.resolve(node["relation"]))
    return [node["indexParams"], node.get("whereClause")]


@handles("CreateSeqStmt", "AlterSeqStmt")
def _sequence(walk: Walk, node: Node, scope: Scope) -> None:
    new_relation(walk, node["sequence"])


@handles("CreateStatsStmt")
def _statistics(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    for table in node["relations"]:
        walk.add(Effect.SCHEMA, *walk.resolve(table["RangeVar"]))
    return [node["exprs"]]


@handles("CreateSchemaStmt")
def _schema_statement(walk: Walk, node: Node, scope: Scope) -> None:
    role = node.get("authrole")
    walk.add(Effect.SCHEMA, f"schema:{node['schemaname']}" if "schemaname" in node else _role(role or {}))
    if role:
        walk.add(Effect.PRIVILEGE, _role(role))
    if "schemaElts" in node:  # their unqualified names are of the new schema
        walk.unknown("CREATE SCHEMA contains other statements; send them one by one, with the schema in their names.")


# --- types ----------------------------------------------------------------------------------------------------------


@handles("CompositeTypeStmt")
def _composite(walk: Walk, node: Node, scope: Scope) -> None:
    new_relation(walk, node["typevar"])


@handles("CreateDomainStmt")
def _domain(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.SCHEMA, qualified(node["domainname"]))
    return [node.get("constraints")]


@handles("AlterDomainStmt")
def _alter_domain(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.SCHEMA, qualified(node["typeName"]))
    _cascade(walk, node)
    return [node.get("def")]


# --- stored code ----------------------------------------------------------------------------------------------------


@handles("CreateFunctionStmt")
def _create_function(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    for effect in (Effect.SCHEMA, Effect.EXECUTE_CODE):
        walk.add(effect, qualified(node["funcname"]))
    return [node.get("parameters"), node.get("sql_body")]


@handles("AlterFunctionStmt")
def _alter_function(walk: Walk, node: Node, scope: Scope) -> None:
    for effect in (Effect.SCHEMA, Effect.EXECUTE_CODE):
        walk.add(effect, qualified(node["func"]["objname"]))


@handles("AlterOperatorStmt")
def _alter_operator(walk: Walk, node: Node, scope: Scope) -> None:
    for effect in (Effect.SCHEMA, Effect.EXECUTE_CODE):
        walk.add(effect, qualified(node["opername"]["objname"]))


@handles("DefineStmt")
def _define(walk: Walk, node: Node, scope: Scope) -> None:
    name = qualified(node["defnames"])
    walk.add(Effect.SCHEMA, name)
    if node["kind"] in {"OBJECT_AGGREGATE", "OBJECT_OPERATOR", "OBJECT_TSPARSER", "OBJECT_TSTEMPLATE", "OBJECT_TYPE"}:
        walk.add(Effect.EXECUTE_CODE, name)


@handles("CreateCastStmt", "CreateTransformStmt")
def _cast(walk: Walk, node: Node, scope: Scope) -> None:
    for effect in (Effect.SCHEMA, Effect.EXECUTE_CODE):
        walk.add(effect, "cast:any" if "sourcetype" in node else "transform:any")


@handles("CreateTrigStmt")
def _trigger(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    walk.add(Effect.SCHEMA, *walk.resolve(node["relation"]))
    walk.add(Effect.EXECUTE_CODE, qualified(node["funcname"]))
    if "constrrel" in node:
        walk.read(walk.resolve(node["constrrel"]))
    return [node.get("whenClause")]


@handles("RuleStmt")
def _rule(walk: Walk, node: Node, scope: Scope) -> list[Any]:
    objects = walk.resolve(node["relation"])
    walk.add(Effect.SCHEMA, *objects)
    walk.add(Effect.EXECUTE_CODE, *objects)
    return [node.get("whereClause"), node.get("actions")]
