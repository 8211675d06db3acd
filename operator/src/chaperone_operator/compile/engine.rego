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

# The decision, and beside it only what is not as usual: what it would be if observed policies were in force (`would`),
# how long it stands (`lasts`: "minute" or "never"; absent means as long as the revision), which rules count how often
# they are used (`counts`), and what else has to be known (`needs`).
decision := object.union_n([outcome, would_be, lasting, counting, lacking])

# From the strictest to the mildest: a readable question, an identity that is not suspended, no access
# that a rule denies, no access that no rule covers; then the strictest rule that covers an access.
outcome := refusal("malformed", malformed) if not well_formed

else := refusal("suspended", suspended) if data.chaperone.identities[input.identity].suspended

else := refusal("malformed", mismatched) if grant.protocol != input.protocol

else := refusal("clock", clockless) if not has_clock

else := refusal("malformed", incomplete) if lacks_module

else := said_by_all if is_unread

else := said_in_force if not grant.observed

else := said_in_force if said_in_force.policy != ""

else := said_by_all if said_by_all.action == "Allow"

else := object.union(refusal("observed", ""), {"action": "Allow"}) if grant.observed

else := refusal("malformed", malformed)

# Where nothing but observed policies gives leave, everything passes but what cannot be read at all.
is_unread if {
	grant.observed
	some access in input.accesses
	access.effect == "unknown"
}

# What the rules of policies in force say together, and what all rules do.
said_in_force := ruled(first_in_force) if grant.rules[first_in_force[0]].action == "Deny"

else := own_refusal(own_in_force) if count(own_in_force) > 0

else := refusal("uncovered", unasked(min(uncovered_in_force))) if count(uncovered_in_force) > 0

else := ruled(first_in_force)

said_by_all := ruled(first_of_all) if grant.rules[first_of_all[0]].action == "Deny"

else := own_refusal(own_of_all) if count(own_of_all) > 0

else := refusal("uncovered", unasked(min(uncovered_by_all))) if count(uncovered_by_all) > 0

else := ruled(first_of_all)

# Rules, and not calls of functions, so that each is worked out once.
first_in_force := strictest("enforced")

first_of_all := strictest("all")

uncovered_in_force := uncovered("enforced")

uncovered_by_all := uncovered("all")

default would_be := {}

would_be := {"would": object.filter(said_by_all, ["action", "policy", "rule"])} if {
	grant.observes
	not is_turned_away
	said_by_all.action != outcome.action
}

is_turned_away if {
	outcome.policy == ""
	outcome.rule in {"malformed", "suspended", "clock"}
}

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
	is_known(object.get(input, "user", {}))
}

# On behalf of whom the agent asks: of nobody, or of a person whose token was checked.
is_known(user) if user == {}

is_known(user) if {
	is_string(user.subject)
	user.subject != ""
	is_string(user.issuer)
	is_string(user.email)
	is_array(user.groups)
	every group in user.groups {
		is_string(group)
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

# --- which rules fire ------------------------------------------------------------------------------------------------

# Each access with the rules that speak of it, and with those of them that fire.
spoken := [[access, indexes] |
	some access in input.accesses
	indexes := {index | some word in words(access.effect); some index in covering(word, access)}
]

fired := [[access, firing] |
	some [access, indexes] in spoken
	firing := {index | some index in indexes; fires(grant.rules[index], access)}
]

# The strictest rule of a scope that fires, as [rule, object, effect, through]; rules are in order, the strictest first.
strictest(scope) := min({[index, access.object, access.effect, object.get(access, "through", "")] |
	some [access, indexes] in fired
	some index in indexes
	in_scope(scope, grant.rules[index])
})

uncovered(scope) := {[access.object, access.effect] |
	some [access, indexes] in fired
	not implied(access)
	not covered(scope, indexes)
}

covered(scope, indexes) if {
	some index in indexes
	in_scope(scope, grant.rules[index])
}

in_scope("all", _)

in_scope("enforced", rule) if not rule.observed

fires(rule, access) if {
	counts(rule.action, access)
	is_open(rule)
	meets(rule, access)
}

counts("Allow", access) if not implied(access)

counts("Deny", _)

counts("RequireApproval", _)

# What a rule requires is required of what the command names. A rule that asks a human about what is implied does so
# always; and what touches nothing has no size, but somebody asks for it.
meets(rule, _) if not rule.require

meets(_, access) if implied(access)

meets(rule, access) if count(unmet(rule, access)) == 0

matters("groups", _)

matters(field, access) if {
	field != "groups"
	not touches_nothing(access)
}

touches_nothing(access) if access.effect == "transaction"

touches_nothing(access) if {
	access.effect == "read"
	access.object == ""
}

# Requirements that do not hold, or of which that is not known; an unknown one never holds.
unmet(rule, access) := [field |
	some field, wanted in rule.require
	matters(field, access)
	not holds(field, wanted, rule, access)
]

holds("where", _, _, access) if access.where == true

holds("limit", most, _, access) if is_within(access.limit, most)

holds("rows", most, _, _) if is_within(input.rows, most)

holds("groups", wanted, _, _) if {
	some group in input.user.groups
	group in wanted
}

holds("repeats", wanted, rule, _) if {
	is_object(input.repeats)
	is_within(object.get(input.repeats, key(rule), 0), wanted.count - 1)
}

is_within(number, most) if {
	is_number(number)
	number >= 0
	number <= most
}

key(rule) := sprintf("%s/%s", [rule.policy, rule.rule])

# --- Rego of policies ------------------------------------------------------------------------------------------------

own_in_force := own_denials("enforced")

own_of_all := own_denials("all")

# What the modules of a scope deny, and in which words. Counts and estimates are none of their business.
own_denials(scope) := {[own.policy, message] |
	some own in grant.own
	in_scope(scope, own)
	is_open(own)
	some message in data.chaperone.own[own.module].deny with input as object.remove(input, ["repeats", "rows"])
}

lacks_module if {
	some own in grant.own
	not data.chaperone.own[own.module].is_loaded
}

own_refusal(denials) := object.union(refusal("rego", shown(sprintf("%v", [message]))), {"policy": policy}) if {
	[policy, message] := min(denials)
}

# --- time ------------------------------------------------------------------------------------------------------------

# Each list of windows (the policy's, the rule's) has one in which this minute is.
is_open(rule) if not rule.windows

is_open(rule) if {
	every windows in rule.windows {
		some window in windows
		is_inside(window)
	}
}

is_inside(window) if {
	window.from < window.to
	now := local[window.zone]
	now.day in window.days
	window.from <= now.minute
	now.minute < window.to
}

# Over midnight: it belongs to the day on which it begins.
is_inside(window) if {
	window.from > window.to
	now := local[window.zone]
	now.day in window.days
	window.from <= now.minute
}

is_inside(window) if {
	window.from > window.to
	now := local[window.zone]
	((now.day + 6) % 7) in window.days
	now.minute < window.to
}

weekdays := {"Monday": 0, "Tuesday": 1, "Wednesday": 2, "Thursday": 3, "Friday": 4, "Saturday": 5, "Sunday": 6}

# Zones differ from UTC by whole minutes, so nothing changes within a minute.
local[zone] := {"day": weekdays[time.weekday([ns, zone])], "minute": (hour * 60) + minute} if {
	some zone in grant.zones
	ns := (input.minute * 60) * 1000000000
	[hour, minute, _] := time.clock([ns, zone])
}

has_clock if not grant.zones

has_clock if {
	is_number(input.minute)
	every zone in grant.zones {
		local[zone]
	}
}

# --- what goes with a decision -----------------------------------------------------------------------------------------

default lasting := {}

lasting := {"lasts": "never"} if depends("rows")

else := {"lasts": "never"} if depends("repeats")

else := {"lasts": "minute"} if grant.own

else := {"lasts": "minute"} if {
	grant.zones
	some [_, indexes] in spoken
	some index in indexes
	grant.rules[index].windows
}

depends(field) if {
	grant.counted
	some [_, indexes] in spoken
	some index in indexes
	grant.rules[index].require[field]
}

default counting := {}

counting := {"counts": used} if {
	grant.counted
	outcome.action != "Deny"
	used := [{"rule": key(rule), "count": rule.require.repeats.count, "per_s": rule.require.repeats.per_s} |
		some index in counted
		rule := grant.rules[index]
	]
	count(used) > 0
}

# An access uses the first rule that gives leave without counting; where there is none, the first of those that count.
counted contains index if {
	some [access, indexes] in fired
	not touches_nothing(access)
	using := [[is_counting(grant.rules[candidate]), candidate] |
		some candidate in indexes
		grant.rules[candidate].action != "Deny"
		in_scope(usual_scope, grant.rules[candidate])
	]
	[has_to_count, index] := min(using)
	has_to_count
}

is_counting(rule) if rule.require.repeats

else := false

usual_scope := "all" if grant.observed

else := "enforced"

default lacking := {}

# An estimate costs the backend a plan: it is asked for where the answer depends on it.
lacking := {"needs": ["rows"]} if {
	grant.counted
	not input.rows
	depends("rows")
	assumed != [outcome.action, would_be]
}

assumed := found if found := [outcome.action, would_be] with input.rows as 0

# --- why -----------------------------------------------------------------------------------------------------------------

# For people who ask (`chaperone explain`), never on the way of a command: nothing above refers to it, so no decision
# pays for it. Each access with the rules that speak of it, the strictest first, and what keeps those from firing that
# do not; and what the policies' own Rego says.
trace := {
	"accesses": [{
		"effect": access.effect,
		"object": access.object,
		"through": object.get(access, "through", ""),
		"covered": is_covered(access, firing),
		"rules": [traced(index, access, firing) | some index in sort(indexes)],
	} |
		some [access, indexes] in spoken
		firing := {index | some index in indexes; fires(grant.rules[index], access)}
	],
	"own": [{"policy": policy, "message": shown(sprintf("%v", [message])), "inForce": [policy, message] in own_in_force} |
		some [policy, message] in own_of_all
	],
}

default is_covered(_, _) := false

is_covered(access, _) if implied(access)

is_covered(_, firing) if covered(usual_scope, firing)

traced(index, access, firing) := {
	"policy": rule.policy,
	"rule": rule.rule,
	"action": rule.action,
	"observed": object.get(rule, "observed", false),
	"fires": index in firing,
	"why": withheld(rule, access),
} if {
	rule := grant.rules[index]
}

withheld(rule, access) := "gives no leave for what is reached through something else" if not counts(rule.action, access)

else := why if why := lack(rule, access)

else := ""

# --- where rules are ---------------------------------------------------------------------------------------------------

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

else := grant.leaves if access.effect == "transaction"

else := []

# --- what is said ------------------------------------------------------------------------------------------------------

ruled(verdict) := {
	"action": rule.action,
	"policy": rule.policy,
	"rule": rule.rule,
	"message": told(rule, verdict),
	"revision": revision_in_force,
} if {
	rule := grant.rules[verdict[0]]
}

told(rule, verdict) := "" if rule.action == "Allow"

else := rule.message if rule.message != ""

else := sprintf("%s%s needs the approval of a human.", [verdict[2], reached(verdict)]) if rule.action == "RequireApproval"

else := sprintf("%s%s is denied.", [verdict[2], reached(verdict)])

reached(verdict) := on(verdict[1]) if verdict[3] == ""

else := sprintf("%s (reached through %s)", [on(verdict[1]), shown(verdict[3])])

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

incomplete := "The Rego of a policy is not in OPA's bundle; look at the chaperone-opa container."

clockless := "The gateway told no time, or a time zone of a policy's windows is not known to OPA; gateway and operator need the same version."

unasked(access) := sprintf(
	"Rule %s of %s allows %s to %s%s at %s, but %s.",
	[rule.rule, rule.policy, shown(input.identity), access[1], on(access[0]), shown(input.target), missing],
) if {
	[index, missing] := min(nearest(access))
	rule := grant.rules[index]
}

else := sprintf(
	"No rule allows %s to %s%s at %s. Ask for a rule with effects [%s]%s in an AccessPolicy for this identity and target.",
	[shown(input.identity), access[1], on(access[0]), shown(input.target), access[1], with_objects(access[0])],
)

# Rules that would give leave, each with what is missing.
nearest(asked) := {[index, missing] |
	some [access, indexes] in spoken
	asked == [access.object, access.effect]
	some index in indexes
	rule := grant.rules[index]
	rule.action != "Deny"
	not rule.observed
	missing := lack(rule, access)
}

lack(rule, access) := "not at this time (see its windows)" if not is_open(rule)

else := concat(", and ", [needed(field, rule.require[field]) | some field in unmet(rule, access)]) if {
	not meets(rule, access)
}

needed("where", _) := "only with a WHERE that is not always true, in the query or statement that names it"

needed("limit", most) := sprintf("only with a LIMIT of at most %d, written as a number", [most])

needed("rows", most) := sprintf("only where the database expects at most %d rows", [most]) if input.rows

else := sprintf("only where the database expects at most %d rows, and it gave no estimate", [most])

needed("repeats", wanted) := sprintf("only %d times in %d minutes", [wanted.count, floor(wanted.per_s / 60)])

needed("groups", wanted) := sprintf("only on behalf of a user in %s", [concat(" or ", wanted)])

on(object) := sprintf(" on %s", [shown(object)]) if object != ""

else := ""

with_objects(object) := sprintf(" and objects [%s]", [shown(object)]) if object != ""

else := ""

# Names come from the agent's command: no control characters, no length without end.
shown(name) := substring(regex.replace(name, `[\p{C}\p{Zl}\p{Zp}]`, "?"), 0, 128)
