# Chaperone's one evaluator of policy: docs/architecture.md §4 says what it decides.
#
# It reads documents that the compiler puts beside it: `revision`, `identities` and `grants`
# (identity, then target, then rules and where to look for them, see `grants.py`). It always has exactly one
# decision, whatever the input is: what it cannot read, it denies.

package chaperone

critical := {"destroy", "privilege", "execute_code", "external_io", "tunnel", "unknown"}

ordinary := {
	"read", "read_sensitive", "create", "modify", "delete", "bulk_read",
	"bulk_write", "schema", "session", "transaction", "maintain",
}

resolutions := {"catalog", "syntactic", "none", "unresolved"}

rank := {"Deny": 0, "RequireApproval": 1, "Allow": 2}

# From the strictest to the mildest: a readable question, an identity that is not suspended, no access
# that a rule denies, no access that no rule covers; then the strictest rule that covers an access.
decision := refusal("malformed", malformed) if not well_formed

else := refusal("suspended", suspended) if data.chaperone.identities[input.identity].suspended

else := refusal("malformed", mismatched) if grant.protocol != input.protocol

else := ruled(strictest) if strictest[0] == rank.Deny

else := refusal("uncovered", unasked(min(uncovered))) if count(uncovered) > 0

else := ruled(strictest) if strictest

else := refusal("malformed", malformed)

well_formed if {
	is_string(input.identity)
	is_string(input.target)
	is_string(input.protocol)
	input.resolution in resolutions
	is_array(input.accesses)
	some named in input.accesses
	not implied(named)
	every access in input.accesses {
		access.effect in (critical | ordinary)
		is_string(access.object)
		is_string(object.get(access, "through", ""))
		sound(access)
	}
}

# The command names another object, and the backend comes by that to this one: a view reads its tables. Whoever gave
# leave for the view gave it for what it shows, so no rule has to allow it; a rule that denies it, or asks a human, counts.
implied(access) if access.through != ""

sound(access) if not implied(access)

else if {
	access.object != ""
	access.effect != "unknown"
}

grant := data.chaperone.grants[input.identity][input.target]

strictest := min({verdict | some access in input.accesses; verdict := judged(access)})

uncovered contains [access.object, access.effect] if {
	some access in input.accesses
	not implied(access)
	not judged(access)
}

# The strictest rule that covers one access, as [rank, rule, object, effect, through]; undefined when none does.
judged(access) := min({[rank[action], index, access.object, access.effect, object.get(access, "through", "")] |
	some word in words(access.effect)
	some index in covering(word, access)
	action := grant.rules[index].action
	counts(action, access)
})

counts("Allow", access) if not implied(access)

counts("Deny", _)

counts("RequireApproval", _)

# A wildcard never means a critical effect.
words(effect) := [effect] if effect in critical

else := [effect, "*"]

# Rules that say `word` and cover the access.
covering(word, access) := array.concat(
	array.concat(object.get(grant.every, word, []), by_name(word, access.object)),
	by_leave(word, access),
)

by_name(word, object_name) := [] if object_name == ""

else := array.concat(
	object.get(grant.exact, [word, object_name], []),
	[glob.rule |
		some first in ["", split(object_name, ".")[0]]
		some glob in object.get(grant.globs, [word, first], [])
		regex.match(glob.pattern, object_name)
	],
)

# A read that touches nothing (SELECT 1) needs leave to read, whatever the objects of that leave are; and who may do
# anything at a target may say BEGIN there.
by_leave(word, access) := object.get(grant.allows, word, []) if {
	access.effect == "read"
	access.object == ""
}

else := grant.first_allow if access.effect == "transaction"

else := []

ruled(verdict) := {
	"action": rule.action,
	"policy": rule.policy,
	"rule": rule.rule,
	"message": told(rule, verdict),
	"revision": revision_in_force,
} if {
	rule := grant.rules[verdict[1]]
}

told(rule, verdict) := "" if rule.action == "Allow"

else := rule.message if rule.message != ""

else := sprintf("%s%s needs the approval of a human.", [verdict[3], reached(verdict)]) if rule.action == "RequireApproval"

else := sprintf("%s%s is denied.", [verdict[3], reached(verdict)])

reached(verdict) := on(verdict[2]) if verdict[4] == ""

else := sprintf("%s (reached through %s)", [on(verdict[2]), shown(verdict[4])])

default revision_in_force := ""

revision_in_force := data.chaperone.revision

refusal(rule, message) := {
	"action": "Deny",
	"policy": "",
	"rule": rule,
	"message": message,
	"revision": revision_in_force,
}

malformed := "The gateway's question has not the shape that this policy engine knows; gateway and operator need the same version."

suspended := sprintf("The AgentIdentity %s is suspended; ask its owner.", [input.identity])

mismatched := sprintf("The AccessTarget %s speaks %s, not %s.", [input.target, grant.protocol, shown(input.protocol)])

unasked(access) := sprintf(
	"No rule allows %s to %s%s at %s. Ask for a rule with effects [%s]%s in an AccessPolicy for this identity and target.",
	[shown(input.identity), access[1], on(access[0]), shown(input.target), access[1], with_objects(access[0])],
)

on(object) := sprintf(" on %s", [shown(object)]) if object != ""

else := ""

with_objects(object) := sprintf(" and objects [%s]", [shown(object)]) if object != ""

else := ""

# Names come from the agent's command: no control characters, no length without end.
shown(name) := substring(regex.replace(name, `[\p{C}\p{Zl}\p{Zp}]`, "?"), 0, 128)
