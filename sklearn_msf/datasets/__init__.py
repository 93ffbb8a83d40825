"""Medical images in the manner of `sklearn.datasets`.

May import `_evaluation`, `persistence` and `runtime`; no other room imports it. `_medmnist`
downloads MedMNIST and `_medmnist_files` reads its files. `_image_folder` loads images of own files:
`_folder_request` checks what is asked, `_folder_contents` and `_image_table` list the files,
`_image_reading` reads headers and pixels by `_pillow_files` and `_dicom_files`, `_image_headers`
holds what a header says, `_common_layout` finds the size and dtype of all, `_resizing` changes the
size, `_collecting` puts the images into one array, and `_folder_report` says what was found and
what was not read. `_shortened_lists` names the first of many files in messages and reports.
"""

from sklearn_msf.datasets._image_folder import load_image_folder
from sklearn_msf.datasets._medmnist import fetch_medmnist

__all__ = ["fetch_medmnist", "load_image_folder"]
