"""The tables of the walk against the grammar's own list of node types: nothing that may hold a node goes unseen."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from chaperone_sidecar.protocols.postgresql import classify, definition, query, utility, walk
from chaperone_sidecar.protocols.postgresql.objects import NAMED, QUALIFIED

DESCRIPTOR: Any = importlib.import_module("postgast.pg_query_pb2").DESCRIPTOR  # its stub is no valid Python
MESSAGES = DESCRIPTOR.message_types_by_name
TABLE = walk._TABLE
HANDLED = {key for key, use in TABLE.items() if callable(use)}
# Typed fields that may be skipped, for a value of these types runs nothing and names no relation.
INERT_TYPES = {"Alias", "TypeName", "CollateClause", "JsonFormat", "JsonReturning", "CTESearchClause", "RoleSpec"}
# Fields that only the server's later stages fill; were one ever set, the statement would be unknown.
AFTER_PARSING = {
    "cooked_default", "ctecolcollations", "ctecolnames", "ctecoltypes", "ctecoltypmods", "formatted_expr",
    "old_conpfeqop", "refs", "xpr",
}  # fmt: skip
# Node fields that are skipped: lists of names and types, each looked at by hand.
INERT_FIELDS = {
    "aliascolnames", "arg_names", "coldeflist", "collation", "collname", "colnames", "fk_attrs", "fk_del_set_cols",
    "including", "keys", "opclass", "pk_attrs", "va_cols",
}  # fmt: skip
# Parts of handled nodes that have no effect of their own: names, types and options that run nothing.
WITHOUT_EFFECT = {
    ("AlterCollationStmt", "collname"), ("AlterDomainStmt", "typeName"), ("AlterEnumStmt", "typeName"),
    ("AlterDatabaseStmt", "options"), ("AlterDatabaseSetStmt", "setstmt"), ("AlterDefaultPrivilegesStmt", "action"),
    ("AlterDefaultPrivilegesStmt", "options"), ("AlterExtensionStmt", "options"),
    ("AlterExtensionContentsStmt", "object"), ("AlterFdwStmt", "func_options"), ("AlterFdwStmt", "options"),
    ("AlterForeignServerStmt", "options"), ("AlterFunctionStmt", "actions"), ("AlterObjectDependsStmt", "extname"),
    ("AlterOpFamilyStmt", "items"), ("AlterOpFamilyStmt", "opfamilyname"), ("AlterOperatorStmt", "options"),
    ("AlterOwnerStmt", "newowner"), ("AlterPolicyStmt", "roles"), ("AlterPublicationStmt", "options"),
    ("AlterPublicationStmt", "pubobjects"), ("AlterRoleSetStmt", "setstmt"), ("AlterRoleStmt", "options"),
    ("AlterSeqStmt", "options"), ("AlterStatsStmt", "defnames"), ("AlterStatsStmt", "stxstattarget"),
    ("AlterSubscriptionStmt", "options"), ("AlterSubscriptionStmt", "publication"),
    ("AlterTSConfigurationStmt", "cfgname"), ("AlterTSConfigurationStmt", "dicts"),
    ("AlterTSConfigurationStmt", "tokentype"), ("AlterTSDictionaryStmt", "dictname"),
    ("AlterTSDictionaryStmt", "options"), ("AlterTableMoveAllStmt", "roles"),
    ("AlterTableSpaceOptionsStmt", "options"), ("AlterTypeStmt", "options"), ("AlterTypeStmt", "typeName"),
    ("AlterUserMappingStmt", "options"), ("AlterUserMappingStmt", "user"), ("CallStmt", "funcexpr"),
    ("CallStmt", "outargs"), ("ClusterStmt", "params"), ("CompositeTypeStmt", "coldeflist"),
    ("ConstraintsSetStmt", "constraints"), ("CopyStmt", "attlist"), ("CopyStmt", "options"),
    ("CreateAmStmt", "handler_name"), ("CreateCastStmt", "func"), ("CreateCastStmt", "targettype"),
    ("CreateConversionStmt", "conversion_name"), ("CreateConversionStmt", "func_name"),
    ("CreateDomainStmt", "collClause"), ("CreateDomainStmt", "typeName"), ("CreateEnumStmt", "typeName"),
    ("CreateEnumStmt", "vals"), ("CreateEventTrigStmt", "funcname"), ("CreateEventTrigStmt", "whenclause"),
    ("CreateExtensionStmt", "options"), ("CreateFdwStmt", "func_options"), ("CreateFdwStmt", "options"),
    ("CreateForeignServerStmt", "options"), ("CreateForeignTableStmt", "options"), ("CreateFunctionStmt", "options"),
    ("CreateFunctionStmt", "returnType"), ("CreateOpClassStmt", "datatype"), ("CreateOpClassStmt", "items"),
    ("CreateOpClassStmt", "opclassname"), ("CreateOpClassStmt", "opfamilyname"),
    ("CreateOpFamilyStmt", "opfamilyname"), ("CreatePLangStmt", "plhandler"), ("CreatePLangStmt", "plinline"),
    ("CreatePLangStmt", "plvalidator"), ("CreatePolicyStmt", "roles"), ("CreatePublicationStmt", "options"),
    ("CreatePublicationStmt", "pubobjects"), ("CreateRangeStmt", "params"), ("CreateRangeStmt", "typeName"),
    ("CreateRoleStmt", "options"), ("CreateSeqStmt", "options"), ("CreateStatsStmt", "defnames"),
    ("CreateStatsStmt", "stat_types"), ("CreateStmt", "nnconstraints"), ("CreateStmt", "ofTypename"),
    ("CreateSubscriptionStmt", "options"), ("CreateSubscriptionStmt", "publication"),
    ("CreateTableSpaceStmt", "options"), ("CreateTableSpaceStmt", "owner"), ("CreateTransformStmt", "fromsql"),
    ("CreateTransformStmt", "tosql"), ("CreateTransformStmt", "type_name"), ("CreateTrigStmt", "args"),
    ("CreateTrigStmt", "columns"), ("CreateTrigStmt", "transitionRels"), ("CreateUserMappingStmt", "options"),
    ("CreateUserMappingStmt", "user"), ("CreatedbStmt", "options"), ("DefineStmt", "args"),
    ("DefineStmt", "definition"), ("DropUserMappingStmt", "user"), ("DropdbStmt", "options"),
    ("GrantRoleStmt", "grantee_roles"), ("GrantRoleStmt", "grantor"), ("GrantRoleStmt", "opt"),
    ("GrantStmt", "grantees"), ("GrantStmt", "grantor"), ("GrantStmt", "privileges"),
    ("ImportForeignSchemaStmt", "options"), ("ImportForeignSchemaStmt", "table_list"),
    ("IndexStmt", "excludeOpNames"), ("IndexStmt", "indexIncludingParams"), ("IndexStmt", "options"),
    ("PrepareStmt", "argtypes"), ("RangeVar", "alias"), ("ReindexStmt", "params"), ("TransactionStmt", "options"),
    ("VacuumStmt", "options"), ("ViewStmt", "aliases"), ("ViewStmt", "options"),
}  # fmt: skip
# What a statement may not consist of: PL/pgSQL's own forms and nodes of the analysed tree.
NOT_SENT = {
    "AlterTableCmd", "CallContext", "InlineCodeBlock", "PLAssignStmt", "PublicationObjSpec", "PublicationTable",
    "RawStmt", "SetOperationStmt",
}  # fmt: skip


def fields_of(name: str) -> list[tuple[str, str]]:
    return [(field.json_name, field.message_type.name) for field in MESSAGES[name].fields if field.message_type]


def test_every_field_that_may_hold_a_node_is_in_a_table() -> None:
    to_see = [key for key in walk.PLAIN if key[0].isupper()]
    seen = set()
    while to_see:
        name = to_see.pop()
        if name in seen:
            continue
        seen.add(name)
        for field, kind in fields_of(name):
            if field in AFTER_PARSING:
                assert field not in TABLE
                continue
            assert field in TABLE, f"{name}.{field} holds a {kind} and is in no table"
            if field in walk.LEAVES:
                assert kind in INERT_TYPES if kind != "Node" else field in INERT_FIELDS, f"{name}.{field} is skipped"
            elif field in walk.PLAIN and kind != "Node":
                assert kind not in HANDLED, f"{name}.{field} holds a bare {kind}, whose handler would not be asked"
                to_see.append(kind)


def test_every_part_of_a_handled_node_is_read_or_known_to_be_without_effect() -> None:
    source = "".join(inspect.getsource(module) for module in (query, utility, definition))
    for name in sorted(HANDLED & set(MESSAGES)):
        for field, kind in fields_of(name):
            if field == "xpr" or (name, field) in WITHOUT_EFFECT:
                continue
            assert f'"{field}"' in source or f"'{field}'" in source, (
                f"{name}.{field} holds a {kind} and nothing reads it"
            )


def test_no_exception_is_listed_that_does_not_exist() -> None:
    for name, field in WITHOUT_EFFECT:
        assert field in dict(fields_of(name)), f"{name}.{field}"
        assert name in HANDLED, name


def test_every_kind_of_statement_is_handled() -> None:
    members = {field.message_type.name for field in MESSAGES["Node"].fields if field.message_type}
    statements = {name for name in members if name.endswith("Stmt")}
    assert statements - set(TABLE) <= NOT_SENT
    assert set(NAMED) | set(QUALIFIED) <= statements


def test_table_names_only_what_the_grammar_has() -> None:
    known = set(MESSAGES) | {field.json_name for message in MESSAGES.values() for field in message.fields}
    assert set(TABLE) <= known
    assert not walk.LEAVES & walk.PLAIN


def test_an_unmapped_node_makes_the_statement_unknown() -> None:
    found = walk.Walk()
    found.statement({"SelectStmt": {"targetList": [{"NextGenerationExpr": {"arg": {}}}]}})
    assert "NextGenerationExpr" in found.why_unknown
    assert [access.effect for access in found.found] == ["unknown"]


def test_a_tree_of_another_shape_is_unknown_and_never_raises() -> None:
    trees: list[walk.Node] = [{"InsertStmt": {}}, {"SelectStmt": {"fromClause": [{"RangeVar": {}}]}}, {"GrantStmt": {}}]
    for tree in trees:
        answer = classify._classified([{"stmt": tree}])
        assert answer.facts.accesses[-1].effect == "unknown"
        assert answer.facts.why_unknown
