"""Precision and recall of the detectors beside Presidio's, on the same texts; microseconds a text; false masks.

    uv run python bench/masking_presidio.py [--count 4000] [--json FILE]

Two corpora, both made with a fixed seed: "sentences" are those of presidio-evaluator, "cells" values of a business's
tables by Faker, a third of them inside a note. Presidio runs its pattern recognizers for the six kinds that both know,
without a language model, and what it says with a score under 0.4 does not count. A label is found if a span of its kind
covers it whole; a span is right if it touches a label of its kind. The packages are no dependencies of the project:
this script installs them into an environment of its own in the cache, at the versions below, and runs itself there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = ("presidio-analyzer==2.2.366", "presidio-anonymizer==2.2.366", "pandas", "python-dotenv", "faker")
EVALUATOR: Final = "presidio-evaluator==0.3.2"  # without what it needs to train models
KINDS: Final = {
    "CREDIT_CARD": ("PaymentCard",),
    "IBAN_CODE": ("IBAN",),
    "IP_ADDRESS": ("IPv4", "IPv6"),
    "US_SSN": ("USSocialSecurity",),
    "EMAIL_ADDRESS": ("Email",),
    "PHONE_NUMBER": ("Phone",),
}
MIN_SCORE: Final = 0.4
SEED: Final = 20251125
LIMIT_S: Final = 1800

type Labels = list[tuple[int, int, str]]


def cells(count: int) -> list[tuple[str, Labels]]:
    """Values of tables, as they stand or in the middle of a note."""
    from faker import Faker  # noqa: PLC0415 - only in the environment of its own

    Faker.seed(SEED)
    rng = random.Random(SEED)  # noqa: S311 (data, no secret)
    american = Faker("en_US")
    others = [Faker(locale) for locale in ("de_DE", "fr_FR", "en_GB", "es_ES", "nl_NL", "it_IT")]
    makers = {
        "CREDIT_CARD": american.credit_card_number,
        "IBAN_CODE": lambda: rng.choice(others).iban(),
        "IP_ADDRESS": lambda: american.ipv4() if rng.random() < 0.7 else american.ipv6(),
        "US_SSN": american.ssn,
        "EMAIL_ADDRESS": lambda: rng.choice([american, *others]).email(),
        "PHONE_NUMBER": lambda: rng.choice([american, *others]).phone_number(),
    }
    found: list[tuple[str, Labels]] = []
    for index in range(count):
        kind = list(makers)[index % len(makers)]
        value = makers[kind]()
        before, after = ("the customer wrote ", " in the form, please check") if rng.random() < 1 / 3 else ("", "")
        found.append((f"{before}{value}{after}", [(len(before), len(before) + len(value), kind)]))
    return found


def sentences(count: int) -> list[tuple[str, Labels]]:
    """Sentences of presidio-evaluator, with the labels of the six kinds."""
    from presidio_evaluator.data_generator import PresidioSentenceFaker  # noqa: PLC0415

    maker = PresidioSentenceFaker("en_US", lower_case_ratio=0.05)
    maker.seed(SEED)
    return [
        (
            one.full_text,
            [(s.start_position, s.end_position, s.entity_type) for s in one.spans if s.entity_type in KINDS],
        )
        for one in maker.generate_new_fake_sentences(count)
    ]


def inside(count: int, path: Path) -> None:
    """In the environment of its own: make the corpora, ask Presidio, write both as JSON."""
    import tldextract  # noqa: PLC0415
    from presidio_analyzer import predefined_recognizers as known  # noqa: PLC0415

    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())  # the list that it brings, and none of the network

    recognizers = [
        known.CreditCardRecognizer(), known.IbanRecognizer(), known.IpRecognizer(), known.UsSsnRecognizer(),
        known.EmailRecognizer(), known.PhoneRecognizer(),
    ]  # fmt: skip
    out: dict[str, Any] = {}
    business: list[str] = json.load(sys.stdin)
    corpora: dict[str, list[tuple[str, Labels]]] = {
        "sentences": sentences(count), "cells": cells(count), "business": [(text, []) for text in business],
    }  # fmt: skip
    for name, texts in corpora.items():
        began = time.process_time()
        said = [
            [
                (result.start, result.end, result.entity_type)
                for recognizer in recognizers
                for result in recognizer.analyze(text, recognizer.supported_entities, None) or []
                if result.score >= MIN_SCORE and result.entity_type in KINDS
            ]
            for text, _ in texts
        ]
        out[name] = {"texts": texts, "said": said, "cpu_s": time.process_time() - began}
    path.write_text(json.dumps(out))


def environment() -> Path:
    """The Python of the environment with Presidio, made now if need be."""
    from chaperone_tools.cache import binary, cache  # noqa: PLC0415

    home = cache() / "bench" / "presidio"
    python = home / "bin" / "python"
    wanted = "\n".join((*PACKAGES, EVALUATOR))
    mark = home / "complete"
    if not mark.exists() or mark.read_text() != wanted:
        install: list[str | Path] = [binary("uv"), "pip", "install", "-q", "--python", python]
        subprocess.run(
            [binary("uv"), "venv", "-q", "--clear", "--python", sys.base_prefix + "/bin/python3", home], check=True
        )
        subprocess.run([*install, *PACKAGES], check=True)
        subprocess.run([*install, "--no-deps", EVALUATOR], check=True)
        mark.write_text(wanted)
    return python


def ours(texts: list[tuple[str, Labels]]) -> tuple[list[Labels], float]:
    """What our detectors find, in characters, and the CPU seconds of it."""
    from chaperone_sidecar.masking.mask import Masker  # noqa: PLC0415
    from chaperone_sidecar.masking.rule import MaskRule  # noqa: PLC0415

    names = {name: kind for kind, detectors in KINDS.items() for name in detectors}
    masker = Masker([MaskRule("Redact", detectors=tuple(names))])
    encoded = [text.encode() for text, _ in texts]
    began = time.process_time()
    spans = [masker.scan(data) for data in encoded]
    taken = time.process_time() - began
    found = [
        [(len(data[: s.start].decode()), len(data[: s.end].decode()), names[s.kind]) for s in one]
        for data, one in zip(encoded, spans, strict=True)
    ]
    return found, taken


def score(texts: list[tuple[str, Labels]], said: list[Labels]) -> dict[str, tuple[float, float, int]]:
    """By kind, and for all: recall, precision, number of labels."""
    labels, covered, spans, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for (_, wanted), found in zip(texts, said, strict=True):
        for start, end, kind in wanted:
            labels[kind] += 1
            covered[kind] += any(k == kind and s <= start and end <= e for s, e, k in found)
        for start, end, kind in found:
            spans[kind] += 1
            right[kind] += any(k == kind and s < end and start < e for s, e, k in wanted)
    for counter in (labels, covered, spans, right):
        counter["all"] = counter.total()
    return {
        kind: (covered[kind] / max(labels[kind], 1), right[kind] / max(spans[kind], 1), labels[kind])
        for kind in (*KINDS, "all")
    }


def business() -> list[str]:
    """A hundred thousand identifiers, times and prices: those of the test, where a mask is always wrong."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "sidecar"))
    import test_masking_false_hits as values  # noqa: PLC0415

    return [make() for make in values.MAKERS.values() for _ in range(values.COUNT // len(values.MAKERS))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="texts of each corpus")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.count, options.inside)
        return
    ids = business()
    few = random.Random(SEED).sample(ids, min(options.count, len(ids)))  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.json"
        subprocess.run(
            [environment(), __file__, "--inside", path, "--count", str(options.count)],
            input=json.dumps(few), stdout=subprocess.DEVNULL, text=True, check=True, timeout=LIMIT_S,
            env=os.environ | {"TQDM_DISABLE": "1"},
        )  # fmt: skip
        corpora = json.loads(path.read_text())
    results: dict[str, Any] = {}
    print(f"{'':28}{'labels':>8}{'ours: recall':>15}{'precision':>11}{'Presidio: recall':>18}{'precision':>11}")
    together: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for name, corpus in corpora.items():
        found, taken_s = ours(corpus["texts"])
        for whole, part in zip(together, (corpus["texts"], found, corpus["said"]), strict=True):
            whole.extend(part)
        count = len(corpus["texts"])
        results[name] = {"us_a_text": {"ours": taken_s / count * 1e6, "presidio": corpus["cpu_s"] / count * 1e6}}
        if name == "business":
            continue
        mine, theirs = score(corpus["texts"], found), score(corpus["texts"], corpus["said"])
        for kind, (recall, precision, labels) in mine.items():
            other = theirs[kind]
            print(f"{name + ' ' + kind:28}{labels:8}{recall:15.3f}{precision:11.3f}{other[0]:18.3f}{other[1]:11.3f}")
        results[name] |= {"ours": mine, "presidio": theirs}
    ours_of_all, other = score(together[0], together[1])["all"], score(together[0], together[2])["all"]
    results["all"] = {"ours": ours_of_all, "presidio": other}
    recall, precision, labels = ours_of_all
    print(f"{'all, with business values':28}{labels:8}{recall:15.3f}{precision:11.3f}{other[0]:18.3f}{other[1]:11.3f}")
    for name in corpora:
        one = results[name]["us_a_text"]
        print(f"{name:12} CPU a text: ours {one['ours']:.1f} µs, Presidio {one['presidio']:.1f} µs")
    wrong = sum(bool(spans) for spans in ours([(text, []) for text in ids])[0])
    results["false_masks"] = {
        "ours": wrong / len(ids),
        "presidio": sum(map(bool, corpora["business"]["said"])) / len(few),
    }
    print(
        f"false masks: ours {results['false_masks']['ours']:.3%} of {len(ids)} business values, "
        f"Presidio {results['false_masks']['presidio']:.3%} of {len(few)}"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
