"""The demo on simulated recordings."""

from neuromorphic_tasks import demo


def test_the_demo_from_recordings_to_its_table(tmp_path, capsys):
    summary = demo.main(
        ["--output_dir", str(tmp_path), "--per_class", "2", "--T_prime", "4", "--epochs", "1"]
    )
    assert [s["steps"] for s in summary["settings"].values()] == [1, 4]
    assert summary["data"] == "simulated events of scikit-learn digits, split first900"
    assert summary["energy_share"] > 0 and (tmp_path / "recording.png").stat().st_size > 10_000
    assert "1/4 of its steps" in capsys.readouterr().out
