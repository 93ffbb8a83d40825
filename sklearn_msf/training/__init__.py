"""The training engine.

May import `flow`, `data` and what lies below. `trainer.Trainer` runs epochs over
`batches.TrainingData` with the `settings.TrainingSettings` that were resolved for it; `optimizer`
steps (Muon and AdamW), `schedule` sets the rate and watches the time, `early_stopping` keeps the
best weights, `state` and `checkpoints` let a run go on where it was cut off.
"""
