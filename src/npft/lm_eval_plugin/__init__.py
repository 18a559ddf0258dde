"""The model type ``npft`` of lm-evaluation-harness: ``lm_eval --model npft``.

The harness finds it by the entry point ``lm_eval.models``, from the release after 0.4.13 on. That
one and older ones know their own model types alone, so ``npft-lm-eval.pth`` lets
:mod:`npft.lm_eval_plugin.startup` announce it where Python is started for the command ``lm_eval``.
"""
