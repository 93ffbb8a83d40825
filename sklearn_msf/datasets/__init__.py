"""Medical images in the manner of `sklearn.datasets`.

May import `_evaluation`, `persistence` and `runtime`; no other room imports it. `_medmnist`
downloads MedMNIST and `_medmnist_files` reads its files. `_image_folder` loads images of own files:
`_folder_contents` and `_image_table` list them, `_image_reading` reads them by `_pillow_files` and
`_dicom_files`, `_common_layout` finds their size and dtype, `_resizing` changes the size, and
`_collecting` puts them into one array.
"""

from sklearn_msf.datasets._image_folder import load_image_folder
from sklearn_msf.datasets._medmnist import fetch_medmnist

__all__ = ["fetch_medmnist", "load_image_folder"]
