"""The tables of several processes: figures that follow from their records."""

from imported_scripts import benchmark_script

scaling = benchmark_script("scaling")


def of_table(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_the_run_on_paper_is_worked_out_from_what_was_counted():
    kind = {"input": [4, 28, 28], "patch_size": 1, "parameters": 10**6, "train_gflop": 2.0}
    kind |= {"epochs": 10, "batch_size": 100}
    pixels = {**kind, "input": [3, 224, 224], "epochs": 50}
    text = scaling.paper_table([{"latents": kind, "pixels": pixels, "encoder_gflop": 200.0}])
    # A million images: 3 bytes for each of 50,176 pixels.
    assert of_table(text, "X, uint8") == ["151 GB", "151 GB"]
    # 3,136 values of 4 bytes (mean and deviation), two variations.
    copies = of_table(text, "copy for training, in each process")
    assert copies == ["25 GB of latents, in a file", "151 GB, in memory"]
    assert of_table(text, "gradients, averaged over processes in a step") == ["4.0 MB", "4.0 MB"]
    assert of_table(text, "FLOP of training") == ["2.0e+16", "1.0e+17"]
    # 2e16 FLOP at 2 % of eight times 989 TFLOP/s are 126 s; 100,000 steps of 10 ms are 1,000 s.
    assert of_table(text, "hours of training by its FLOP") == ["0.04", "0.18"]
    assert of_table(text, "hours of training by its steps") == ["0.28", "1.39"]
    # 4e17 FLOP at 10 % of 989 TFLOP/s.
    assert of_table(text, "hours of encoding") == ["1.1", "-"]
    # (1.12 + 0.28) hours and 1.39 hours of eight GPUs at 3 dollars.
    assert of_table(text, "dollars in all") == ["34", "33"]


def test_rates_are_compared_with_one_thread():
    machine = {"cpu": "any", "instructions": "any", "threads": 2, "gpu": None, "gflops": 100.0}
    provenance = {"machine": machine, "precision": "float32", "software": {"torch": "2"}}
    provenance["data"] = {"name": "images"}
    records = [
        {"processes": n, "threads": m, "images_per_second": rate, "provenance": provenance}
        for n, m, rate in [(1, 2, 150.0), (1, 1, 100.0), (2, 1, 190.0)]
    ]
    of_another = {**provenance, "machine": {**machine, "cpu": "another"}}
    others = {"processes": 4, "threads": 1, "images_per_second": 900.0, "provenance": of_another}
    for kept in (records, [others, *records]):
        lines = scaling.table(kept).splitlines()[2:-2]
        rates = ["| 1 | 1 | 100 | 1.00 |", "| 1 | 2 | 150 | 1.50 |", "| 2 | 1 | 190 | 1.90 |"]
        assert lines == rates
