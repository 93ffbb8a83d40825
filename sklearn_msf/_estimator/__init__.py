"""The scikit-learn interface: parameters, checks of X and y, fitting, saving.

Only this room knows scikit-learn's interface of estimators. It may import every room below it.
`base.BaseMedSymmFlowClassifier` is the one class above the two public ones, which are in the
modules `classifier` and `latent_classifier` of the package. It has all public methods, and these
call the other modules:

- Parameters: `parameters` has the table of all of them, `auto_settings` makes settings of them with
  all automatic choices, `paper` has the paper's.
- Checks: `data_validation` of X, y and weights, `given_images` of images that are given beside
  generated ones, `sampling_requests` of what is asked of generated ones. `weights` computes those
  of samples and classes, and how many images an epoch has.
- Fitting: `fit` goes from checked parameters and data to a model, over `preparation` of pixels or
  `latent_preparation` of latents, whose `encoded_sizes` and `variation_count` say at which sizes
  and in how many variations images are encoded. `splitting` holds samples out, `calibration` fits
  the temperature, `mirroring_check` warns of flips that change the class, `callbacks` calls those
  of scikit-learn, and `run_fingerprint` identifies the run that checkpoints belong to. What a fit
  gives is a `fit_result.FitResult`.
- Rejecting: `risk_target` is the risk to keep to, `rejection_learning` learns a rule from it and
  calibration images, and `rejection` applies the rule.
- Keeping: `serialization` saves and opens folders, `pickling` makes plain state for pickles, and
  `restoring` makes models of what both hold. `model_card` describes a saved model, `hub` finds and
  uploads models, `onnx_export` checks requests for an ONNX file.

`sample_augmentation` and `plotting` take their checks of arguments and seeds from `parameters`, and
their checks of images from `given_images`.
"""
