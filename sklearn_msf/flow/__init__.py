"""The mathematics of the paper: path, label codes, velocity field, ODE.

May import `nn` and the folders below it. `path` has the interpolants and their velocities
(section 3), `label_codes` the class masks (section 3.1, equation 2), `velocity_field` the field
over image and mask in both directions. `parameterizations` and `image_parameterizations` define
what its network may learn, `ode_solver` integrates. Other folders build fields with
`parameterizations.build_field`.
"""
