"""The training engine.

May import `flow`, `data` and the folders below them. `trainer.Trainer` runs epochs over
`batches.TrainingData` with `settings.TrainingSettings`, in which all automatic choices are made.
`optimizer` makes the steps (Muon and AdamW), `schedule` has the learning rate and the time
budget, `early_stopping` keeps the best weights. With `state` and `checkpoints`, which verifies
what it reads, an interrupted run can be resumed; `state_checks` and `epoch_logs` check a state that
comes from a file. `losses` has the losses of both branches.
"""
