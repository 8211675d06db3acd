"""Kinds of things in a database: how statements name them, and what defining or changing them counts as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.postgresql import relations
from chaperone_sidecar.protocols.postgresql.relations import words
from chaperone_sidecar.protocols.postgresql.walk import Node

# Statements whose effects need no more than one name: type -> (effects, prefix of the object, field with the name).
_S, _D, _P = Effect.SCHEMA, Effect.DESTROY, Effect.PRIVILEGE
_X, _IO = Effect.EXECUTE_CODE, Effect.EXTERNAL_IO
NAMED: Final[dict[str, tuple[tuple[Effect, ...], str, str]]] = {
    "AlterDatabaseRefreshCollStmt": ((_S,), "database", "dbname"),
    "AlterDatabaseSetStmt": ((_P,), "database", "dbname"),
    "AlterDatabaseStmt": ((_S, _P), "database", "dbname"),
    "AlterEventTrigStmt": ((_S, _X), "event_trigger", "trigname"),
    "AlterExtensionContentsStmt": ((_S, _X), "extension", "extname"),
    "AlterExtensionStmt": ((_S, _X), "extension", "extname"),
    "AlterFdwStmt": ((_S, _IO), "fdw", "fdwname"),
    "AlterForeignServerStmt": ((_S, _IO), "foreign_server", "servername"),
    "AlterPublicationStmt": ((_S, _IO), "publication", "pubname"),
    "AlterSubscriptionStmt": ((_S, _IO), "subscription", "subname"),
    "AlterTableMoveAllStmt": ((_S, _IO), "tablespace", "new_tablespacename"),
    "AlterTableSpaceOptionsStmt": ((_S, _IO), "tablespace", "tablespacename"),
    "AlterUserMappingStmt": ((_P, _IO), "foreign_server", "servername"),
    "CreateAmStmt": ((_S, _X), "access_method", "amname"),
    "CreateEventTrigStmt": ((_S, _X), "event_trigger", "trigname"),
    "CreateExtensionStmt": ((_S, _X), "extension", "extname"),
    "CreateFdwStmt": ((_S, _IO), "fdw", "fdwname"),
    "CreateForeignServerStmt": ((_S, _IO), "foreign_server", "servername"),
    "CreatePLangStmt": ((_S, _X), "language", "plname"),
    "CreatePublicationStmt": ((_S, _IO), "publication", "pubname"),
    "CreateRoleStmt": ((_P,), "role", "role"),
    "CreateSubscriptionStmt": ((_S, _IO), "subscription", "subname"),
    "CreateTableSpaceStmt": ((_S, _IO), "tablespace", "tablespacename"),
    "CreateUserMappingStmt": ((_P, _IO), "foreign_server", "servername"),
    "CreatedbStmt": ((_S,), "database", "dbname"),
    "DropSubscriptionStmt": ((_D, _IO), "subscription", "subname"),
    "DropTableSpaceStmt": ((_D, _IO), "tablespace", "tablespacename"),
    "DropUserMappingStmt": ((_P, _IO), "foreign_server", "servername"),
    "DropdbStmt": ((_D,), "database", "dbname"),
    "ImportForeignSchemaStmt": ((_S, _IO), "foreign_server", "server_name"),
}
# The same for things with a name of parts: type -> (effects, field with the list of parts).
QUALIFIED: Final[dict[str, tuple[tuple[Effect, ...], str]]] = {
    "AlterCollationStmt": ((_S,), "collname"),
    "AlterEnumStmt": ((_S,), "typeName"),
    "AlterOpFamilyStmt": ((_S, _X), "opfamilyname"),
    "AlterStatsStmt": ((_S,), "defnames"),
    "AlterTSConfigurationStmt": ((_S,), "cfgname"),
    "AlterTSDictionaryStmt": ((_S,), "dictname"),
    "AlterTypeStmt": ((_S, _X), "typeName"),
    "CreateConversionStmt": ((_S, _X), "conversion_name"),
    "CreateEnumStmt": ((_S,), "typeName"),
    "CreateOpClassStmt": ((_S, _X), "opclassname"),
    "CreateOpFamilyStmt": ((_S, _X), "opfamilyname"),
    "CreateRangeStmt": ((_S, _X), "typeName"),
}
RELATIONS: Final = words(
    """OBJECT_TABLE OBJECT_VIEW OBJECT_MATVIEW OBJECT_SEQUENCE OBJECT_INDEX OBJECT_FOREIGN_TABLE OBJECT_COLLATION
    OBJECT_CONVERSION OBJECT_STATISTIC_EXT OBJECT_TSCONFIGURATION OBJECT_TSDICTIONARY OBJECT_TSPARSER
    OBJECT_TSTEMPLATE"""
)
_PARTS_OF_RELATIONS: Final = words("""OBJECT_COLUMN OBJECT_POLICY OBJECT_RULE OBJECT_TABCONSTRAINT OBJECT_TRIGGER""")
RIGHTS: Final = frozenset({"OBJECT_POLICY", "OBJECT_ROLE", "OBJECT_USER_MAPPING"})
OUTSIDE: Final = words("""OBJECT_FDW OBJECT_FOREIGN_SERVER OBJECT_PUBLICATION OBJECT_SUBSCRIPTION OBJECT_TABLESPACE""")
_CODE: Final = words(
    """OBJECT_AGGREGATE OBJECT_CAST OBJECT_EVENT_TRIGGER OBJECT_EXTENSION OBJECT_FUNCTION OBJECT_LANGUAGE
    OBJECT_OPCLASS OBJECT_OPERATOR OBJECT_OPFAMILY OBJECT_PROCEDURE OBJECT_ROUTINE OBJECT_RULE OBJECT_TRANSFORM
    OBJECT_TRIGGER"""
)
TABLE_RIGHTS: Final = words(
    """AT_ChangeOwner AT_EnableRowSecurity AT_DisableRowSecurity AT_ForceRowSecurity AT_NoForceRowSecurity
    AT_EnableTrig AT_EnableAlwaysTrig AT_EnableReplicaTrig AT_DisableTrig AT_EnableTrigAll AT_DisableTrigAll
    AT_EnableTrigUser AT_DisableTrigUser AT_EnableRule AT_EnableAlwaysRule AT_EnableReplicaRule AT_DisableRule"""
)
TABLE_LOSSES: Final = frozenset({"AT_DropColumn"})
TABLE_OUTSIDE: Final = frozenset({"AT_SetTableSpace", "AT_GenericOptions", "AT_AlterColumnGenericOptions"})


def named(kind: str, node: Node) -> tuple[str, ...]:
    """The objects that a node of DROP, COMMENT and their like names, given the kind of object.

    Raises:
        relations.Ambiguous: a kind whose name is of a form not known here.
    """
    if "List" in node:
        parts = relations.strings(node["List"]["items"])
        if kind in RELATIONS and parts:
            return relations.qualify(_schema(parts), parts[-1])
        if kind in {"OBJECT_TYPE", "OBJECT_DOMAIN"} and parts:
            return (relations.join(_schema(parts) or "public", parts[-1]),)
        if kind in _PARTS_OF_RELATIONS and len(parts) > 1:
            return relations.qualify(_schema(parts[:-1]), parts[-2])
        if kind in {"OBJECT_OPCLASS", "OBJECT_OPFAMILY"} and len(parts) > 1:  # the access method comes first
            return (relations.join(_schema(parts[1:]) or "public", parts[-1]),)
    elif "ObjectWithArgs" in node:
        return (qualified(node["ObjectWithArgs"]["objname"]),)
    elif "TypeName" in node:
        return (qualified(node["TypeName"]["names"]),)
    elif "String" in node:
        return (f"{kind.removeprefix('OBJECT_').lower()}:{node['String']['sval']}",)
    elif "RangeVar" in node:
        return relations.relation(node["RangeVar"])
    if kind in {"OBJECT_CAST", "OBJECT_TRANSFORM", "OBJECT_LARGEOBJECT", "OBJECT_DOMCONSTRAINT"}:
        return (f"{kind.removeprefix('OBJECT_').lower()}:any",)
    raise relations.Ambiguous(f"The gateway can't tell the name of this {kind}; leave it to an administrator.")


def _schema(parts: Sequence[str]) -> str:
    return parts[-2] if len(parts) > 1 else ""


def qualified(name: list[Node]) -> str:
    """Name of a function, type or operator that is defined, altered or dropped: `public` unless it says otherwise."""
    parts = relations.strings(name)
    return relations.join(_schema(parts) or "public", parts[-1])


def more(kind: str) -> tuple[Effect, ...]:
    """What else changing an object of the kind is."""
    if kind in RIGHTS:
        return (Effect.PRIVILEGE,)
    if kind in OUTSIDE:
        return (Effect.EXTERNAL_IO,)
    return (Effect.EXECUTE_CODE,) if kind in _CODE else ()
