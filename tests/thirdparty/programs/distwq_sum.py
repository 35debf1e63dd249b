"""distwq: a controller gives tasks to workers, each of which is a group of ranks."""

import distwq


def do_work(n):
    return n * n


def main(controller):
    for n in range(40):
        controller.submit_call("do_work", (n,), module_name="distwq_sum")
    results = [controller.get_next_result()[1] for _ in range(40)]
    assert sorted(value[0] if isinstance(value, list) else value for value in results) == [
        n * n for n in range(40)
    ], results
    print("distwq: held")


if __name__ == "__main__":
    distwq.run(
        fun_name="main" if distwq.is_controller else None,
        module_name="distwq_sum",
        nprocs_per_worker=1,
    )
