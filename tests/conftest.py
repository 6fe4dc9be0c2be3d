"""Before any test: our package tells Ray to stay on loopback, so it must be imported before Ray is."""

import omni_platform  # noqa: F401
