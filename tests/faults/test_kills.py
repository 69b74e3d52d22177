from faults import kills


def test_killed_while_it_evaluates_and_writes_a_run_ends_with_the_same_bits(tmp_path):
    tried = kills.kill_and_resume(3, tmp_path)
    assert [kill["wanted"] for kill in tried] == ["evaluation", "write of best", "write of last"]
    assert any(kill["hit"].startswith("write of") for kill in tried)
