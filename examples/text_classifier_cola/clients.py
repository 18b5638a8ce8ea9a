"""What the clients train."""

from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel


def classifier(classes: int = 2) -> PreTrainedModel:
    """Return a BERT of two layers with initial weights, as the transformers library makes it."""
    return BertForSequenceClassification(
        BertConfig(
            num_labels=classes,
            num_hidden_layers=2,
            hidden_size=128,
            num_attention_heads=2,
            intermediate_size=512,
        )
    )
