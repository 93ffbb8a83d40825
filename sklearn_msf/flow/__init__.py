"""The mathematics of the paper: path, label codes, velocity field, ODE, guidance.

May import `nn` and the folders below it. `path` has the interpolants and their velocities
(section 3), `label_codes` the class masks and how they are decoded (section 3.1, equation 2),
`velocity_field` the field over image and mask in both directions, and guidance.
`image_parameterizations` defines what its network may learn of images, `ode_solver` integrates.
Other folders build fields with `velocity_field.build_field`.
"""
