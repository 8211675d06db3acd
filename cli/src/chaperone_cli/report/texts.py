"""What a report says of completeness and accuracy, and of what it does not show. One sentence, one claim."""

from __future__ import annotations

from typing import Final

from chaperone_cli.report.tables import APPROVALS, EPOCHS, IDENTITIES, OBJECTS, PODS, READS, REPERFORMED, TOTALS

ESTABLISHED: Final = {
    "population": "Completeness of pods: the operator names, in populations that the log holds, which pods there are; "
    "each was held against the stream of its gateway. What does not match is under exceptions.",
    "checkpoint": "Completeness of records: commands were listed as of one size of the log, whose root is in "
    "checkpoint.txt under the signatures of the log and of the witnesses named above.",
    "totals": "Completeness of commands: each session states how many it had; that was compared with the list wherever "
    "the session lies within the period and is over.",
    "samples": "Accuracy: of each sampled command the whole stream was fetched and verified up to the log's signature, "
    "and the row was compared with the record in it, field by field. The other commands of such a stream were looked "
    "for in the list.",
    "signatures": "The operator's signature on every population, and that each follows the one before it, were "
    "verified with the key that coverage.csv names; the log has the newest one of each namespace.",
    "decisions": "Accuracy of decisions: those of the sampled sessions were made again by OPA with the revision of "
    "policy that each record names, as the operator signed it. Differences are under exceptions. What a record does "
    "not say is not made up: such a command counts as not repeatable.",
    "live": "Objects were listed when the report was made, at the versions named above; they are as they were then.",
    "revisions": "Revisions are those that records of decisions name, so none that decided a command is missing.",
    "approvals": "A command that people released names its request, whose votes bear the name that the API server "
    "authenticated.",
    "reads": "A read is written into the same log before its answer is given. Those that made this report come after "
    "its checkpoint, and will be in the next one.",
    "witness": "Completeness against the back ends: calls that a server counted by itself, by role, were held against "
    "the commands recorded, for the servers, roles and times of totals.csv and no others.",
    "silence": "Silence of an identity is called attested only where populations span the period, each of its pods was "
    "heard, and the log has no command of it; all else is called unknown.",
}
NEEDS: Final[dict[str, tuple[str, ...]]] = {  # without which a sentence is not true
    "population": (EPOCHS, PODS), "checkpoint": ("log",), "totals": (), "samples": ("log", "proof"),
    "signatures": (EPOCHS, "signature"), "decisions": ("log", "decision", REPERFORMED),
    "live": (IDENTITIES, OBJECTS), "revisions": (), "approvals": (APPROVALS,), "reads": (READS,),
    "silence": (EPOCHS, PODS), "witness": (TOTALS,),
}  # fmt: skip
MISSED: Final = {  # what is said instead
    "population": "Completeness of pods: populations or coverages could not be listed.",
    "checkpoint": "Completeness of records: there were no keys to verify the checkpoint of the log by.",
    "samples": "Accuracy of every sampled command: some could not be proved; samples.csv says which, and why.",
    "signatures": "The signatures on populations: not all could be verified; coverage.csv says which, and why.",
    "decisions": "Accuracy of decisions: none could be made again; reperformed.csv says why.",
    "live": "What was in place: not all objects could be listed.",
    "approvals": "Who released commands: approval requests could not be listed.",
    "reads": "Who read the evidence: reads could not be listed.",
    "witness": "That no traffic went past a gateway: counters of the back ends were not compared with the records.",
    "silence": "Silence of identities: populations or coverages could not be listed.",
}
NOT_ESTABLISHED: Final = {
    "credentials": "That agents hold no credential of their own: neither images nor Secrets were looked at.",
    "unsampled": "Commands outside the sample were listed by the collector and not verified one by one.",
    "deleted": "Objects that were deleted before the report was made are not in it.",
    "authors": "Who wrote or reviewed a change: the API server keeps the program and the time of the last change, and "
    "not the person.",
    "unused": "Which grants were never used.",
    "review": "That access was reviewed by people.",
    "names": "That one person does not vote under two names; names were compared as the API server gives them.",
    "egress": "Connections and names that the gateway refused: they are in the streams, and in no table here.",
    "tls": "Which version of TLS each session used.",
    "content": "What answers contained, and whether masks met every confidential value.",
    "images": "Which software ran inside the agents' pods.",
    "drift": "Configuration between two revisions that decided no command.",
    "alerts": "Which alerts were raised, and who looked at them.",
    "not-asked-again": "That decisions outside the sampled sessions are those that policy makes; chaperone reperform "
    "--from --to asks about all of them.",
    "incidents": "How people judged and answered an incident.",
    "cuts": "How long a suspension took to reach each gateway.",
    "tests": "That changes were tested before they were applied.",
    "restore": "That a restore was exercised; backups were not looked at.",
    "disposal": "That texts were erased in time: retention was not exercised.",
}
