"""`ochat ablate`: the arms of C-RLFT's ablation from one recipe, trained, scored and compared."""
