"""Uses of a fitted model: classify images, generate them, change their class, measure uncertainty.

May import `flow`, `data` and the rooms below them, but neither `training` nor scikit-learn.
The functions here take a `fitted_model.FittedModel`; `image_space` has the conversion between
images and what its field works on. The estimators call `classification.predict` and `classify`,
`sampling.sample`, `sample_trajectory` and `change_class`, and `denoising_error.typicality`.
`captured_integration` captures integrations of the field as CUDA graphs. `temperature` calibrates
probabilities, and `uncertainty.UNCERTAINTIES` maps each kind of uncertainty to a function of a
prediction.
"""
