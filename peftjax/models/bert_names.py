"""The tensors of BERT and RoBERTa checkpoints, and the leaves that hold them."""

from peftjax.models import names

_ATTENTION, _LAYER = 'encoder.layer.{layer}.attention', 'encoder.layer.{layer}'
BERT_NAMES = (
    *names.embedding('embeddings.word_embeddings', 'embeddings/word_embeddings'),
    *names.embedding('embeddings.position_embeddings', 'embeddings/position_embeddings'),
    *names.embedding('embeddings.token_type_embeddings', 'embeddings/token_type_embeddings'),
    *names.norm('embeddings.LayerNorm', 'embeddings/layer_norm'),
    *names.dense(f'{_ATTENTION}.self.query', 'layers/attention/query'),
    *names.dense(f'{_ATTENTION}.self.key', 'layers/attention/key'),
    *names.dense(f'{_ATTENTION}.self.value', 'layers/attention/value'),
    *names.dense(f'{_ATTENTION}.output.dense', 'layers/attention/output'),
    *names.norm(f'{_ATTENTION}.output.LayerNorm', 'layers/attention/layer_norm'),
    *names.dense(f'{_LAYER}.intermediate.dense', 'layers/ffn/intermediate'),
    *names.dense(f'{_LAYER}.output.dense', 'layers/ffn/output'),
    *names.norm(f'{_LAYER}.output.LayerNorm', 'layers/ffn/layer_norm'),
    *names.dense('pooler.dense', 'pooler'),
    *names.dense('classifier', 'classifier'),
)
ROBERTA_NAMES = (
    *BERT_NAMES,
    *names.dense('classifier.dense', 'classifier/dense'),
    *names.dense('classifier.out_proj', 'classifier/out_proj'),
)
