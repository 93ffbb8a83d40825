"""The training engine.

May import `flow`, `data` and the rooms below them. `trainer.Trainer` runs epochs over
`batches.TrainingData` with `settings.TrainingSettings`, in which all automatic choices are made.
`step` is one step, from the indices of a batch to updated weights; `losses` has the losses of both
branches. `optimizer` has Muon and AdamW with the moving average of the weights, `muon` the
mathematics of the first. `schedule` has the learning rate and the time budget, within which
`fraction` chooses how many samples are at t = 1; `early_stopping` keeps the best weights. With
`state` and `checkpoints`, which verifies what it reads, an interrupted run can be resumed;
`fingerprints` tells one run from another, `state_checks` and `epoch_logs` check a state that comes
from a file.
"""
