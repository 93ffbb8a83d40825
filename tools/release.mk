# Checks before a release: `make release-check`, or one part of it. docs/releasing.md says which.
#
# A step that passed leaves a file in $(RELEASE). A run that was interrupted goes on with the steps
# that are left; after a change of the sources everything is checked again.

RELEASE := build/release
DIST := $(RELEASE)/dist
# The source distribution without the package: its tests must find the installed one.
UNPACKED := $(RELEASE)/unpacked
SOURCES := $(shell git ls-files -- . ':!.ci' 2>/dev/null)
# The time limit of a test is for a machine that does nothing else.
PYTEST_OPTIONS := -q -o faulthandler_timeout=900
TEST_FILES := $(notdir $(basename $(wildcard tests/test_*.py)))

# The oldest first. Names or paths; those that are not on this machine are left out.
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
# Commands of version managers exist for versions that they do not run.
FOUND_PYTHONS := $(foreach python,$(PYTHONS),$(shell $(python) -c "print('$(python)')" 2>/dev/null))

.PHONY: release-check release-check-dist release-check-install release-check-oldest \
	release-check-pythons

release-check: release-check-dist release-check-install release-check-oldest release-check-pythons

release-check-dist: $(DIST)/.checked
release-check-install: $(RELEASE)/wheel/.passed $(RELEASE)/sdist/.passed

$(DIST)/.checked: $(INSTALLED) $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[release]"
	rm -rf $(DIST) $(UNPACKED)
	$(BIN)/python -m build --outdir $(DIST) .
	$(BIN)/python -m twine check --strict $(DIST)/*
	$(BIN)/python tools/check_distributions.py $(DIST)
	mkdir -p $(UNPACKED)
	tar -xzf $(DIST)/*.tar.gz --strip-components 1 -C $(UNPACKED)
	rm -r $(UNPACKED)/sklearn_msf
	touch $@

# $(call installation,NAME,FILE): an empty environment with one of the distributions, and what works
# in it.
define installation
$(RELEASE)/$(1)/.passed: $(DIST)/.checked
	$(PYTHON) -m venv --clear $(RELEASE)/$(1)
	$(RELEASE)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$(DIST)/$(2)
	$(RELEASE)/$(1)/bin/python -I tools/check_installation.py README.md
	touch $$@
endef
$(eval $(call installation,wheel,*.whl))
$(eval $(call installation,sdist,*.tar.gz))

# $(call test_environment,NAME,PYTHON,CONSTRAINTS,EMPTY): an environment with the wheel and what its
# tests need, and one step for each test file. The last step are the examples in docstrings. EMPTY is
# the exit code of pytest that passes besides 0: 5, of a file without a test that runs, where all its
# tests need something that these versions do not have.
define test_environment
$(RELEASE)/$(1)/.installed: $(DIST)/.checked $(3)
	test -x $(RELEASE)/$(1)/bin/python || $(2) -m venv $(RELEASE)/$(1)
	$(RELEASE)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(3) \
		"$$$$(ls $(DIST)/*.whl)[test]"
	# The version is the same while the sources change.
	$(RELEASE)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--force-reinstall $(DIST)/*.whl
	$(RELEASE)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(3) \
		--no-deps medmnist
	touch $$@

$(RELEASE)/$(1)/%.passed: $(RELEASE)/$(1)/.installed
	cd $(UNPACKED) && nice -n 10 ../$(1)/bin/python -P -m pytest $(PYTEST_OPTIONS) tests/$$*.py \
		|| test $$$$? -eq $(4)
	touch $$@

$(RELEASE)/$(1)/docstrings.passed: $(RELEASE)/$(1)/.installed
	cd $(UNPACKED) && nice -n 10 ../$(1)/bin/python -P -m pytest $(PYTEST_OPTIONS) \
		-c pyproject.toml --pyargs sklearn_msf README.md
	touch $$@

$(1)-passed: $(TEST_FILES:%=$(RELEASE)/$(1)/%.passed) $(RELEASE)/$(1)/docstrings.passed
.PHONY: $(1)-passed
endef

OLDEST := $(RELEASE)/oldest-constraints.txt
$(OLDEST): pyproject.toml tools/lower_bounds.py $(INSTALLED)
	mkdir -p $(@D)
	$(BIN)/python tools/lower_bounds.py > $@

$(eval $(call test_environment,oldest,$(firstword $(PYTHONS)),$(OLDEST),5))
$(foreach python,$(FOUND_PYTHONS), \
	$(eval $(call test_environment,$(notdir $(python)),$(python),constraints.txt,0)))

release-check-oldest: oldest-passed
release-check-pythons: $(addsuffix -passed,$(notdir $(FOUND_PYTHONS)))
	@echo "Checked with $(FOUND_PYTHONS), of $(PYTHONS)."
