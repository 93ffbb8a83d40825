"""The mathematics of the paper: path, label codes, velocity field, ODE.

May import `nn` and what lies below. `path` has the interpolants and their velocities (section 3),
`label_codes` the class masks (section 3.1, equation 2), `velocity_field` the field over both and
its two directions, `parameterizations` what its network may learn, `ode_solver` the integration.
Others build fields with `parameterizations.make_field`.
"""
