r"""The pytest plug-in of the conformance kit: a test that asks for `lora_case` runs once for each vector and type.

    def test_conforms(lora_case):
        lora_case.check(run)

    [pytest]
    lora_conform_dtypes = float32 bfloat16      # float32 when left out
    lora_conform_xfails = known.txt             # beside the configuration file

It stands outside the package, because pytest loads it in every run of everybody who has lora_np installed: nothing is
imported here, and nothing is done, until a test asks for the case.
"""


def pytest_addoption(parser):  # type: ignore[no-untyped-def]
    parser.addini("lora_conform_dtypes", "types in which the conformance vectors of lora_np are asked", type="args")
    parser.addini("lora_conform_xfails", "a list of conformance vectors of lora_np that may fail", default="")


def pytest_generate_tests(metafunc):  # type: ignore[no-untyped-def]
    if "lora_case" in metafunc.fixturenames:
        from lora_np.conformance.plugin import cases

        metafunc.parametrize("lora_case", cases(metafunc.config))
