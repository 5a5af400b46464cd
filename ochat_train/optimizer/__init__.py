"""AdamW whose moments take 8 or 16 bits, and which keeps no float32 copy of the weights (`optimizer.states`).

codes.py is how numbers are stored, adamw.py updates them, size.py is how many bytes they take, shards.py finds them in
the DeepSpeed engine.
"""
