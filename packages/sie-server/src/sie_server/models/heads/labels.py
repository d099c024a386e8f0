"""Classifiers of several labels (relevant or not, entailment or not), of which the operator chooses one as the score.

The logit is the log-odds of the chosen label, so its sigmoid is the label's probability: that of the softmax over all
labels, or of the label alone where labels are independent (`problem_type: multi_label_classification`). Both rules are
those of the text-classification pipeline of transformers (`pipelines/text_classification.py`, `postprocess`). monoBERT
with two labels is read in the same way (Nogueira and Cho, 2019, https://arxiv.org/abs/1901.04085).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sie_server.errors import cut, shown
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import Classifier
from sie_server.models.spec import Labels, UnsupportedCheckpoint

MOST = 10_000  # labels
NAMED = 12  # labels in a message


def read_labels(config: Mapping[str, Any], chosen: str | int | None, file: str) -> Labels:
    """Return the labels of a classifier; `chosen` is the name or the number of one, `file` where it may be written.

    Raises:
        UnsupportedCheckpoint: there are several and none is chosen, or the chosen one does not exist.
    """
    # the default of transformers is two labels; that of sentence-transformers is one where the class is no classifier
    named = str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")
    known = config.get("id2label") or {}
    count = config.get("num_labels") or len(known or range(2 if named else 1))
    if type(count) is not int or not 1 <= count <= MOST:
        raise UnsupportedCheckpoint(
            f"config.json: num_labels is {shown(count)}; expected a number from 1 to {MOST}"
        )
    names = [str(known.get(str(i), known.get(i, f"LABEL_{i}"))) for i in range(count)]
    if chosen is None and count == 1:
        return Labels()
    listed = ", ".join(f"{i}: {cut(name)}" for i, name in enumerate(names[:NAMED]))
    if chosen is None:
        raise UnsupportedCheckpoint(
            f"the classifier has {count} labels ({listed}), and a score needs one of them. Choose it with a line "
            f"`label: {cut(names[1])}` in {file} next to config.json, or in the model's YAML file; the score is then "
            "the probability of this label"
        )
    if config.get("problem_type") == "regression" and count > 1:
        raise UnsupportedCheckpoint(
            f"config.json: problem_type is 'regression' with {count} outputs; none of them has a probability"
        )
    found = [i for i, name in enumerate(names) if chosen in (i, name)]
    if len(found) != 1:
        raise UnsupportedCheckpoint(
            f"the label {shown(chosen)} is {'ambiguous' if found else 'unknown'}; the classifier has {listed}"
        )
    return Labels(count, found[0], config.get("problem_type") == "multi_label_classification")


class LabelledClassifier:
    """A classifier of several labels, read as the log-odds of one."""

    def __init__(self, head: Classifier, labels: Labels) -> None:
        self._head, self._labels = head, labels
        self.readout: Readout = head.readout

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from the hidden states of `readout`."""
        return log_odds(self._head.logits(hidden, batch), self._labels)


def log_odds(logits: Tensor, labels: Labels) -> Tensor:
    """Return [sequences] from [sequences, labels]."""
    own = logits[:, labels.chosen]
    if labels.count == 1 or labels.independent:
        return own
    # masked, not selected: a selection by a mask waits for the device
    chosen = torch.arange(labels.count, device=logits.device) == labels.chosen
    return own - logits.masked_fill(chosen, float("-inf")).logsumexp(1)
