"""Fitted models on a hub: the hub's own client talks to a local server."""

import functools
import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_classifier, tiny_latent_classifier
from hub_server import TOKEN, HubServer, serve
from test_hub import client, set_endpoint  # noqa: F401

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator.hub import check_upload
from sklearn_msf.exceptions import HubError
from sklearn_msf.persistence import hub as persistence_hub

NAME = "someone/eyes"
X = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
open_model = MedSymmFlowClassifier.from_pretrained


@functools.cache
def fitted(seed=0):
    return tiny_classifier(max_epochs=1, random_state=seed).fit(X, [0, 1] * 4)


@pytest.fixture
def hub(client, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as server:
        serve(server)
        set_endpoint(monkeypatch, server.address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.address)
        yield server
        server.shutdown()


def is_same_model(found, wanted):
    return np.array_equal(found.predict_proba(X), wanted.predict_proba(X))


def test_a_model_comes_back_as_it_was_pushed_with_the_commit_it_is_of(hub):
    commit = fitted().push_to_hub(NAME, license="cc-by-4.0")
    opened = open_model(NAME)
    assert opened.hub_source_ == {"id": NAME, "revision": commit}
    assert is_same_model(opened, fitted())


def test_a_commit_has_weights_metadata_and_a_card_and_no_pickle(hub):
    fitted().push_to_hub(NAME, license="cc-by-4.0", commit_message="Better eyes")
    _, files = hub.files(NAME)
    weights = json.loads(files["model.json"])["weights"]["file"]
    assert files.keys() == {".gitattributes", "README.md", "model.json", weights}
    card = files["README.md"].decode()
    block = card.split("---\n")[1].splitlines()
    assert {"library_name: sklearn_msf", "license: cc-by-4.0"} <= set(block)
    assert "pipeline_tag: image-classification" in block
    assert f'MedSymmFlowClassifier.from_pretrained("{NAME}")' in card


def test_weights_go_through_large_file_storage(hub):
    fitted().push_to_hub(NAME)
    assert f"POST /{NAME}.git/info/lfs/objects/batch" in hub.asked


def test_a_second_push_replaces_the_model_in_one_commit_and_the_first_can_still_be_had(hub):
    first, second = fitted(0).push_to_hub(NAME), fitted(1).push_to_hub(NAME)
    assert len(hub.commits[NAME]) == 3
    assert len([name for name in hub.files(NAME)[1] if name.endswith(".safetensors")]) == 1
    assert is_same_model(open_model(NAME, revision=first), fitted(0))
    assert is_same_model(open_model(NAME, revision=second), fitted(1))


def test_only_the_two_files_of_the_model_are_downloaded(hub):
    fitted().push_to_hub(NAME)
    hub.asked.clear()
    open_model(NAME)
    names = {path.rsplit("/", 1)[-1] for path in hub.asked}
    assert len(names) == 2
    assert "model.json" in names


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_after_one_download_no_hub_is_needed(hub, monkeypatch, revision):
    commit = fitted().push_to_hub(NAME)
    revision = commit if revision == "commit" else revision
    open_model(NAME, revision=revision)
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    opened = open_model(NAME, revision=revision)
    assert hub.asked == []
    assert opened.hub_source_["revision"] == commit
    assert is_same_model(opened, fitted())


def test_a_branch_is_looked_up_again_and_no_revision_is_what_the_cache_knows(hub):
    fitted(0).push_to_hub(NAME)
    open_model(NAME)
    commit = fitted(1).push_to_hub(NAME)
    assert is_same_model(open_model(NAME), fitted(0))
    assert open_model(NAME, revision="main").hub_source_["revision"] == commit


def no_space(*arguments, **keywords):
    raise OSError(28, "No space left on device")


# As a whole, and after the client has looked for the file.
@pytest.mark.parametrize("part", ["hf_hub_download", "file_download._download_to_tmp_and_move"])
def test_a_newer_commit_that_cannot_be_stored_is_an_error_and_leaves_the_old_model(
    hub, monkeypatch, part
):
    old = fitted(0).push_to_hub(NAME)
    open_model(NAME, revision="main")
    new = hub.commit(NAME, {**hub.files(NAME)[1], "model.json": b"{}"})
    with monkeypatch.context() as patch:
        patch.setattr(f"huggingface_hub.{part}", no_space)
        with pytest.raises(HubError, match=f"Pass revision='{old}' for .* names {new}.*No space"):
            open_model(NAME, revision="main")
    assert open_model(NAME, revision=old).hub_source_["revision"] == old
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for revision in (None, "main"):
        assert open_model(NAME, revision=revision).hub_source_["revision"] == old


def test_weights_of_a_newer_commit_that_cannot_be_stored_leave_the_old_model(hub, monkeypatch):
    old = fitted(0).push_to_hub(NAME)
    open_model(NAME)
    fitted(1).push_to_hub(NAME)
    with monkeypatch.context() as patch:
        patch.setattr("sklearn_msf._estimator.hub.name_of_weights", lambda *names: "absent")
        with pytest.raises(HubError, match="absent"):
            open_model(NAME, revision="main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_model(NAME).hub_source_["revision"] == old


def test_a_hub_that_names_a_commit_and_then_is_silent_opens_no_other(hub, monkeypatch):
    fitted(0).push_to_hub(NAME)
    open_model(NAME, revision="main")
    fitted(1).push_to_hub(NAME)
    ask = persistence_hub._commit_of

    def then_silent(*arguments):
        commit = ask(*arguments)
        hub.refuses = "resolve"
        return commit

    monkeypatch.setattr(persistence_hub, "_commit_of", then_silent)
    # The hub has answered, so the client may try the download again.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(HubError, match="Pass revision="):
        open_model(NAME, revision="main")


@pytest.mark.parametrize("gone", ["file", "tag"])
def test_what_the_hub_no_longer_has_is_not_opened_from_the_cache(hub, gone):
    commit = fitted(0).push_to_hub(NAME)
    hub.branches[NAME, "v1"] = commit
    open_model(NAME, revision="v1")
    if gone == "file":
        hub.branches[NAME, "v1"] = hub.commit(NAME, {"notes.txt": b"Moved.\n"})
    else:
        del hub.branches[NAME, "v1"]
    with pytest.raises(HubError, match="NotFound"):
        open_model(NAME, revision="v1")
    assert open_model(NAME, revision=commit).hub_source_["revision"] == commit


def test_a_tag_names_a_commit(hub):
    first = fitted(0).push_to_hub(NAME)
    fitted(1).push_to_hub(NAME)
    hub.branches[NAME, "v1"] = first
    opened = open_model(NAME, revision="v1")
    assert opened.hub_source_ == {"id": NAME, "revision": first}


def test_another_fit_forgets_the_hub(hub):
    fitted().push_to_hub(NAME)
    opened = open_model(NAME)
    assert "hub_source_" not in vars(opened.set_params(max_epochs=1).fit(X, [0, 1] * 4))


def test_a_latent_model_goes_to_the_hub_and_back(hub):
    classifier = tiny_latent_classifier(max_epochs=1).fit(X, [0, 1] * 4)
    commit = classifier.push_to_hub(NAME)
    opened = LatentMedSymmFlowClassifier.from_pretrained(NAME, revision=commit)
    assert opened.hub_source_["revision"] == commit
    assert is_same_model(opened, classifier)


# Folders and ids


def test_a_folder_is_opened_without_the_hub_even_if_its_name_could_be_an_id(
    hub, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fitted().save_pretrained(NAME)
    opened = open_model(NAME)
    assert "hub_source_" not in vars(opened)
    assert hub.asked == []


def test_with_a_revision_only_the_hub_is_asked(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted(0).save_pretrained(NAME)
    commit = fitted(1).push_to_hub(NAME)
    assert is_same_model(open_model(NAME, revision=commit), fitted(1))


@pytest.mark.parametrize(
    "name", ["eyes", "../eyes", "./eyes", "a/b/c", "/someone/eyes", Path(NAME)]
)
def test_what_is_a_path_is_never_taken_for_an_id(hub, name):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        open_model(name)
    with pytest.raises(ValueError, match="revision='main' is for models on the hub"):
        open_model(name, revision="main")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["https://huggingface.co/someone/eyes", "someone/my eyes", "eyes"])
def test_text_that_is_neither_a_folder_nor_an_id_gets_told_what_an_id_is(hub, name):
    with pytest.raises(FileNotFoundError, match="no such folder.*has the form 'user/model'"):
        open_model(name)
    with pytest.raises(
        FileNotFoundError, match=r"no such folder \(the working directory is '.*'\)\.$"
    ):
        open_model(Path(name))


@pytest.mark.parametrize("revision", ["", 3, True])
def test_a_revision_that_cannot_be_one_is_refused_before_the_hub_is_asked(hub, revision):
    with pytest.raises(ValueError, match="revision must be None or a commit, branch or tag"):
        open_model(NAME, revision=revision)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["eyes", "../eyes", "a/b/c", Path(NAME), None, 3])
def test_what_is_no_id_is_not_pushed(hub, name):
    with pytest.raises(ValueError, match="repo_id must be an id on the hub"):
        fitted().push_to_hub(name)
    assert hub.asked == []


@pytest.mark.parametrize("license", ["MIT\ntags: [x]", "", "a b", 3.5, "Apache"])
def test_a_licence_that_is_no_identifier_is_refused_before_any_request(hub, license):
    with pytest.raises(ValueError, match="license must be an identifier"):
        fitted().push_to_hub(NAME, license=license)
    assert hub.asked == []


@pytest.mark.parametrize("license", [None, "mit", "cc-by-4.0", "openrail++", "c-uda"])
def test_every_identifier_of_the_hub_is_a_licence(hub, license):
    check_upload(NAME, license)


# A hub that does not give or take


def test_a_model_that_nobody_has_is_named_with_the_way_out(hub):
    with pytest.raises(HubError, match=r"'someone/nothing' is no folder here.*404.*pass a Path"):
        open_model("someone/nothing")


def test_a_revision_that_does_not_exist_is_named(hub):
    fitted().push_to_hub(NAME)
    with pytest.raises(HubError, match="at revision 'v7'"):
        open_model(NAME, revision="v7")


def test_a_folder_that_a_revision_passes_over_is_not_called_missing(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted().save_pretrained("someone/nothing")
    with pytest.raises(HubError, match="With a revision 'someone/nothing' is an id .* leave revis"):
        open_model("someone/nothing", revision="v7")


def test_a_repository_with_another_library_in_it_is_refused(hub):
    hub.commits[NAME] = []
    hub.commit(NAME, {"pytorch_model.bin": pickle.dumps("code"), "config.json": b"{}"})
    with pytest.raises(HubError, match=r"model\.json"):
        open_model(NAME)
    hub.commit(NAME, {"model.json": pickle.dumps("code")})
    with pytest.raises(HubError, match="is not JSON"):
        open_model(NAME, revision="main")
    assert not any("pytorch_model" in path for path in hub.asked)


@pytest.mark.parametrize("file", ["../secret", "pytorch_model.bin", "model-0123.safetensors"])
def test_a_changed_model_cannot_name_other_files(hub, file):
    fitted().push_to_hub(NAME)
    _, files = hub.files(NAME)
    content = json.loads(files["model.json"])
    content["weights"]["file"] = file
    hub.commit(NAME, {**files, "model.json": json.dumps(content).encode()})
    hub.asked.clear()
    with pytest.raises(HubError, match="names weights that are not beside it"):
        open_model(NAME)
    assert {path.rsplit("/", 1)[-1] for path in hub.asked} == {"model.json"}


def test_weights_that_were_exchanged_are_refused(hub):
    fitted().push_to_hub(NAME)
    _, files = hub.files(NAME)
    name = next(name for name in files if name.endswith(".safetensors"))
    changed = files[name][:-1] + bytes([files[name][-1] ^ 1])
    hub.commit(NAME, {**files, name: changed})
    with pytest.raises(ValueError, match="digest"):
        open_model(NAME)


def test_a_model_of_the_other_class_is_named(hub):
    fitted().push_to_hub(NAME)
    with pytest.raises(ValueError, match="holds a 'MedSymmFlowClassifier'"):
        LatentMedSymmFlowClassifier.from_pretrained(NAME)


@pytest.mark.parametrize("page", ["repos/create", "preupload", "lfs", "commit"])
def test_a_push_that_fails_keeps_the_model_that_was_there(hub, page, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fitted(0).push_to_hub(NAME)
    before = hub.files(NAME)
    hub.refuses = page
    with pytest.raises(HubError, match=f"not pushed to '{NAME}'.*500"):
        fitted(1).push_to_hub(NAME)
    assert hub.files(NAME) == before


def test_a_push_without_a_token_says_how_to_log_in(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", os.devnull)
    with pytest.raises(HubError, match="401.*hf auth login"):
        fitted().push_to_hub(NAME)
    assert NAME not in hub.commits


def test_a_card_that_somebody_wrote_is_kept(hub):
    fitted(0).push_to_hub(NAME)
    _, files = hub.files(NAME)
    hub.commit(NAME, {**files, "README.md": b"# Ours\n"})
    fitted(1).push_to_hub(NAME)
    assert hub.files(NAME)[1]["README.md"] == b"# Ours\n"
    assert is_same_model(open_model(NAME), fitted(1))


def test_a_licence_stays_until_another_one_is_stated(hub):
    def push(seed, **stated):
        fitted(seed).push_to_hub(NAME, **stated)
        return hub.files(NAME)[1]["README.md"].decode()

    assert "\nlicense: mit\n---\n" in push(0, license="mit")
    assert "\nlicense: mit\n---\n" in push(1)
    card = push(0, license="cc-by-4.0")
    assert "\nlicense: cc-by-4.0\n---\n" in card
    assert card.count("license:") == 1


def test_a_card_that_somebody_has_changed_is_kept_with_a_warning(hub):
    fitted(0).push_to_hub(NAME, license="mit")
    _, files = hub.files(NAME)
    changed = files["README.md"] + b"\n## Results\n"
    hub.commit(NAME, {**files, "README.md": changed})
    with pytest.warns(UserWarning, match="was changed since it was pushed, and is kept") as warned:
        fitted(1).push_to_hub(NAME, license="mit")
    assert len([each for each in warned if each.category is UserWarning]) == 1
    assert hub.files(NAME)[1]["README.md"] == changed
    assert is_same_model(open_model(NAME), fitted(1))


@pytest.mark.parametrize(
    ("card", "states"),
    [
        ("# Ours\n", False),
        ("---\nlicense: mit\n---\n# Ours\n", True),
        ("---\r\ntags:\r\n- eyes\r\nlicense: 'mit'\r\n---\r\n# Ours\r\n", True),
        ("\n---\nlicense: mit  # As agreed.\n---\n", True),
        ("# Ours\n\nlicense: mit\n", False),
        ("---\nlicense: mit-0\n---\n# Ours\n", False),
        ("---\ntags: []\n---\nlicense: mit\n", False),
    ],
)
def test_a_card_that_is_kept_and_lacks_the_licence_is_named_after_the_push(hub, card, states):
    fitted(0).push_to_hub(NAME)
    _, files = hub.files(NAME)
    hub.commit(NAME, {**files, "README.md": card.encode()})
    n_commits = len(hub.commits[NAME])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if states:
            fitted(1).push_to_hub(NAME, license="mit")
        else:
            with pytest.raises(UserWarning, match="of its own.*write 'license: mit' between"):
                fitted(1).push_to_hub(NAME, license="mit")
    assert len(hub.commits[NAME]) == n_commits + 1
    assert hub.files(NAME)[1]["README.md"] == card.encode()


def test_a_push_leaves_the_model_that_was_opened_before_in_the_cache(hub, monkeypatch):
    fitted(0).push_to_hub(NAME)
    open_model(NAME)
    _, files = hub.files(NAME)
    hub.commit(NAME, {**files, "notes.txt": b"Somebody else's.\n"})
    fitted(1).push_to_hub(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_same_model(open_model(NAME), fitted(0))


def test_an_estimator_that_is_not_fitted_or_cannot_be_saved_is_not_pushed(hub):
    with pytest.raises(ValueError, match="not fitted"):
        tiny_classifier().push_to_hub(NAME)
    broken = pickle.loads(pickle.dumps(fitted())).set_params(n_draws=-1)
    with pytest.raises(ValueError, match="n_draws"):
        broken.push_to_hub(NAME)
    assert hub.asked == []


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    # It may have been meant as a folder.
    with pytest.raises(ImportError, match=rf"'{NAME}' is no folder.*sklearn-msf\[hub\]"):
        open_model(NAME)
    with pytest.raises(ImportError, match=r"sklearn-msf\[hub\]"):
        fitted().push_to_hub(NAME)
