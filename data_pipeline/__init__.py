"""From raw conversations to packed steps: everything that happens before a GPU is needed. Never imports torch.

The path of one conversation, a file a step:

    sources.py       a file, folder, glob or dataset      -> raw rows, each with its place (file:line)
    formats.py       raw row                              -> Conversation
    tagging.py       Conversation + class table           -> TaggedConversation (class, condition, weight per message)
    templates.py     TaggedConversation                   -> segments of prompt text and control tokens
    tokenization.py  segments                             -> TokenizedConversation (input_ids, loss_weights)
    dataset.py       TokenizedConversation                -> prepared dataset on disk, memory-mapped
    packing.py       lengths                              -> packs of constant length
    plan.py          prepared dataset                     -> which pack belongs to which optimizer step

Rows that OpenChat has tokenized take a shorter way: openchat_parquet.py reads them, turns.py finds their class and
text.

`chunk_work.py` does the first five for a piece of a file, `prepare.py` runs it over all of them in parallel and writes;
`settings.py` is the `data` section of the recipe.
"""
