"""From raw conversations to packed steps: everything that happens before a GPU is needed. Never imports torch.

The path of one conversation:

    read/sources.py         a file, folder, glob or dataset   -> raw rows, each with its place (file:line)
    read/formats.py         raw row                           -> Conversation
    classes/tagging.py      Conversation + class table        -> TaggedConversation (class, condition, message weights)
    prompt/templates.py     TaggedConversation                -> segments of prompt text and control tokens
    prompt/tokenization.py  segments                          -> TokenizedConversation (input_ids, loss_weights)
    prepared/dataset.py     TokenizedConversation             -> prepared dataset on disk, memory-mapped
    plan/packing.py         lengths                           -> packs of constant length
    plan/plan.py            prepared dataset                  -> which pack belongs to which optimizer step

Rows that OpenChat has tokenized take a shorter way: read/openchat_parquet.py reads them, prompt/turns.py finds their
class and text.

`prepare/chunk.py` does the first five for a piece of a file, `prepare/prepare.py` runs it over all of them in parallel
and writes; `settings.py` is the `data` section of the recipe.
"""
