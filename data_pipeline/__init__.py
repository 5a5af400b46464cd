"""From raw conversations to packed steps: everything that happens before a GPU is needed. Never imports torch.

The path of one conversation, a file for each stop:

    read/found_files.py      path, split, subset of a source    -> its files, and what is left out
    read/file_kinds.py       file                              -> what it is, by its content
    read/sources.py          file, folder, pattern or dataset  -> raw rows, each with its place (file:line)
    formats/*.py             raw row                           -> system text and messages, one file a format
    read/rows.py             raw row                           -> Conversation
    classes/tagging.py       Conversation                      -> TaggedConversation (class, condition, message weights)
    prompt/render.py         TaggedConversation                -> segments of prompt text and control tokens
    prompt/tokenization.py   segments                          -> TokenizedConversation (input_ids, loss_weights)
    prompt/length_rule.py    TokenizedConversation             -> what the limit leaves of it
    prepared/writer.py       TokenizedConversation             -> prepared dataset on disk
    prepared/dataset.py      prepared dataset                  -> its rows, memory-mapped
    plan/packing.py          lengths                           -> packs of constant length
    plan/plan.py             prepared dataset                  -> which pack belongs to which optimizer step

`read/conversations.py` does the first four for any format. It also reads rows that OpenChat has tokenized: their layout
is in `read/openchat_parquet.py`, and `prompt/turns.py` finds their class and text.

`prepare/chunk.py` takes a chunk of a source to prepared rows, `prepare/workers.py` runs it in parallel,
`prepare/prepare.py` writes. `weight.py` says where the weight of a token is made, `held_out.py` what is held out;
`settings/` is the `data` section of the recipe.
"""
