"""Classes of transformers that neither score nor embed texts, and the classes for a `model_type`, for refusals."""

from __future__ import annotations

import re
from collections.abc import Iterable

# by the end of a class name
PURPOSES = {
    "ForTokenClassification": "labels tokens, such as named entities",
    "ForQuestionAnswering": "marks answers in a text",
    "ForMultipleChoice": "chooses between answers",
    "ForNextSentencePrediction": "predicts whether a sentence follows",
    "ForPreTraining": "is for pre-training and has no head of a reranker",
    "ForConditionalGeneration": "generates a text from an input",
    "ForSeq2SeqLM": "generates a text from an input",
    "LMHeadModel": "generates text",
    "ForCausalLM": "generates text",
    "ForImageClassification": "reads images",
    "ForObjectDetection": "reads images",
    "ForSemanticSegmentation": "reads images",
    "ForImageTextToText": "reads images",
    "ForVision2Seq": "reads images",
    "ForCTC": "transcribes speech",
    "ForSpeechSeq2Seq": "transcribes speech",
    "ForAudioClassification": "reads sound",
    "ForTextToWaveform": "speaks texts",
}
FAMILIES = {
    r"^(CLIP|SigLIP|Siglip|ViT|Dino|Swin|Blip|ResNet|ConvNext)": "reads images",
    r"^(Whisper|Wav2Vec2|Hubert|SpeechT5|Clap)": "reads sound",
}


def purpose(architecture: str) -> str:
    """Return what a class does, as a sentence that follows its name; empty for an unknown class."""
    named = [does for pattern, does in FAMILIES.items() if re.match(pattern, architecture)]
    named += [does for end, does in PURPOSES.items() if architecture.endswith(end)]
    return f" It {named[0]}: it is neither a reranker nor an embedding model." if named else ""


def classes_of(model_type: object, known: Iterable[str]) -> list[str]:
    """Return the classes of `known` for a `model_type` of config.json, classifiers first."""
    name = re.sub(r"[^a-z0-9]", "", str(model_type).lower())
    fitting = [one for one in known if re.match(rf"{name}(for|model)", one.lower())] if name else []
    return sorted(fitting, key=lambda one: ("SequenceClassification" not in one, one))
