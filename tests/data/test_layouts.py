"""Small corpora in the layouts, headers and spellings of the field's datasets: each is read, and read right.

Headers and folder names are those of the published files; images and rows are made here.
"""

import unicodedata
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.modeling.configuration_ham10000 import LOCALIZATIONS
from ham10000.training.data.sources import DataReport, load_data, metadata_frame
from ham10000.training.data.split import make_split
from ham10000.training.data.tables import SITES, DataOptions
from ham10000.training.inference.inputs import find_images, read_metadata


def images(folder: Path, *names: str, suffix: str = ".jpg") -> None:
    """Writes an image of its own colour for each name, and for the same one in `test`."""
    for name in names:
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (len(path.stem) * 7, sum(map(ord, path.stem)) % 256, 160 if name.startswith("test/") else 90)
        Image.new("RGB", (12, 10), colour).save(path)


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Each corpus: its images (.jpg where no suffix is given), and after each `>` a table.
HAM_ROWS = """\
lesion_id,image_id,dx,dx_type,age,sex,localization,dataset
H1,I1,mel,histo,60,male,back,x
H2,I2,nv,histo,,unknown,ear,x"""
HAM_IMAGES = "HAM10000_images_part_1/I1 HAM10000_images_part_2/I2"
MILK = "akiec; bcc; ben_oth; bkl; df; inf; mal_oth; mel; nv; sccka; vasc"
ONE_HOT = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"  # as the official file of the ISIC 2018 test set begins
TEST_2018 = "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv"
TRUTH_2018 = TEST_2018.replace("Test", "Training")
INPUT_2019 = "ISIC_2019_Training_Input/ISIC_2019_Training_Input"
CORPORA = {
    "empty": "",
    "kaggle": f"""\
{HAM_IMAGES} {HAM_IMAGES.lower().replace("/i", "/I")}
> HAM10000_metadata.csv
{HAM_ROWS}""",
    # Tabs, no suffix, and masks in a folder of their own.
    "dataverse": f"""\
{HAM_IMAGES} HAM10000_segmentations_lesion_tschandl/I1_segmentation.png
> HAM10000_metadata
{HAM_ROWS.replace(",", chr(9))}""",
    "beside ISIC": f"""\
ISIC2018_Task3_Training_Input/I1 ISIC2018_Task3_Training_Input/I2
> HAM10000_metadata.csv
{HAM_ROWS}""",
    # Training and test side by side, as downloaded.
    "isic2018": f"""\
ISIC2018_Task3_Training_Input/I1 ISIC2018_Task3_Training_Input/I2 ISIC2018_Task3_Training_Input/I3
ISIC2018_Task3_Test_Input/T1
> {TRUTH_2018}
{ONE_HOT}
I1,1.0,0.0,0,0,0,0,0.0
I2,0.0,1.0,0,0,0,0,0.0
I3,0.0,1.0,0,0,0,0,0.0
> {TEST_2018}
{ONE_HOT}
T1,1.0,0.0,0,0,0,0,0.0
> ISIC2018_Task3_Training_LesionGroupings.csv
image,lesion_id,diagnosis_confirm_type
I1,H1,histopathology
I2,H2,single image
I3,H2,x""",
    # Images twice nested; the first rows without a lesion, whole rows of metadata empty.
    "isic2019": f"""\
{INPUT_2019}/I0 {INPUT_2019}/I17_downsampled {INPUT_2019}/I73
> ISIC_2019_Training_GroundTruth.csv
image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK
I0,0.0,1.0,0,0,0,0,0,0,0
I17_downsampled,0.0,0.0,0,0,0,0,0,1,0
I73,0.0,0.0,0,1,0,0,0,0,0
> ISIC_2019_Training_Metadata.csv
image,age_approx,anatom_site_general,lesion_id,sex
I0,55.0,anterior torso,,female
I17_downsampled,,,,
I73,70.0,head/neck,L1,male""",
    "isic2020": """\
jpeg/train/I26 jpeg/train/I15 jpeg/train/I52 jpeg/test/T1
> train.csv
image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target
I26,IP_7279968,male,45.0,head/neck,unknown,benign,0
I15,IP_3075186,female,45.0,upper extremity,unknown,benign,0
I52,IP_7279968,female,50.0,lower extremity,melanoma,malignant,1
> sample_submission.csv
image_name,target
T1,0""",
    # What isic-cli writes: metadata.csv next to the images, which is not an imagefolder's.
    "archive": """\
I6 I7 I8
> metadata.csv
isic_id,copyright_license,age_approx,anatom_site_general,diagnosis_1,diagnosis_3,image_type,lesion_id,sex
I6,CC-BY-NC,45,palms/soles,Benign,Nevus,dermoscopic,IL_1,male
I7,CC-0,50,lower extremity,Malignant,"Melanoma, NOS",dermoscopic,IL_2,male
I8,CC-0,,,Benign,Pigmented benign keratosis,clinical: close-up,IL_3,""",
    "older archive": """\
I0.JPG I1.JPG
> challenge.csv
isic_id,age_approx,anatom_site_general,benign_malignant,diagnosis,mel_class,nevus_type,sex
I0,55,,benign,nevus,,blue,female
I1,,,benign,pigmented benign keratosis,,,""",
    # The truth is by lesion, with two images each.
    "milk10k": """\
MILK10k_Training_Input/IL_1/I1 MILK10k_Training_Input/IL_1/I2
MILK10k_Training_Input/IL_2/I3 MILK10k_Training_Input/IL_2/I4
> MILK10k_Training_GroundTruth.csv
lesion_id,AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC
IL_1,0,0,0,0,0,0,0,0.0,1.0,0,0
IL_2,0,0,0,0,0,0,0,0.0,0.0,1,0
> MILK10k_Training_Metadata.csv
lesion_id,image_type,isic_id,attribution,image_manipulation,age_approx,sex,skin_tone_class,site
IL_1,clinical: close-up,I1,MILK,instrument only,40,female,3,trunk
IL_1,dermoscopic,I2,MILK,instrument only,40,female,3,trunk
IL_2,dermoscopic,I3,MILK,instrument only,85,male,2,head_neck_face
IL_2,clinical: close-up,I4,MILK,instrument only,85,male,2,head_neck_face""",
    "pad_ufes": """\
imgs_part_1/P15.png imgs_part_3/P46.png
> metadata.csv
patient_id,lesion_id,smoke,age,gender,fitspatrick,region,diameter_1,diagnostic,itch,img_id,biopsed
PAT_15,17,,8,,,ARM,,NEV,FALSE,P15.png,FALSE
PAT_46,88,FALSE,55,FEMALE,3,NECK,6,SCC,TRUE,P46.png,TRUE""",
    "bcn20000": """\
BCN_20k_train/I3 BCN_20k_train/I4
> bcn_20k_train.csv
isic_id,age_approx,anatom_site_general,diagnosis,lesion_id,sex
I3,80,head/neck,Scar,BCN_1,male
I4,75,anterior torso,BCC,BCN_2,female""",
    "derm7pt": """\
images/NEL/Nel026 images/NEL/Nel028
> meta/meta.csv
case_num,diagnosis,seven_point_score,sex,location,clinic,derm,case_id
1,basal cell carcinoma,0,female,head neck,NEL/NEL027.JPG,NEL/Nel026.jpg,
2,blue nevus,1,male,lower limbs,NEL/NEL029.JPG,NEL/Nel028.jpg,
> meta/train_indexes.csv
indexes
0""",
    "class folders": """\
train/Nevus/001 train/Nevus/002 train/Melanoma/001 test/Melanoma/003""",
    # Each part with a table of its own; other photographs under the same names.
    "two parts": """\
train/1 train/2 test/1
> train/metadata.csv
file_name,label
1.jpg,scar
2.jpg,tattoo
> test/metadata.csv
file_name,label,lesion_id
1.jpg,scar,""",
    # Each with other names of the same columns.
    "two headers": """\
train/1 test/2
> train/metadata.csv
file_name,label,age,old
1.jpg,scar,40,x
> test/metadata.csv
image,dx,age_approx,new
2.jpg,tattoo,50,y""",
    # Semicolons, umlauts, other words; the disk writes `ä` as two characters, as macOS does.
    "clinic": """\
Bilder/Nävus_1.JPG Bilder/Melanom_2.tif
> Tabelle.csv
Datei Name;Diagnose;Alter;Geschlecht;site
Nävus_1.JPG;Nävus;61;m;Fuß
Melanom_2.tif;Melanom;n/a;f;unknown""",
}


def write(name: str, folder: Path, *more: str) -> Path:
    """Writes a corpus, and more tables, each after the line of its name, and returns the folder."""
    pictures, *tables = CORPORA[name].split("\n> ")
    if name == "clinic":
        pictures = unicodedata.normalize("NFD", pictures)
    for picture in pictures.split():
        suffix = Path(picture).suffix
        images(folder, picture.removesuffix(suffix), suffix=suffix or ".jpg")
    for table in (*tables, *more):
        text(folder / table.partition("\n")[0], *table.split("\n")[1:])
    return folder


SEVEN, EIGHT = "; ".join(LABELS), "ak; bcc; bkl; df; mel; nv; scc; vasc"


class Layout(NamedTuple):
    """A corpus, and what it must be read as."""

    corpus: str
    rows: str  # image_id, dx, age ("" where missing), sex, localization; the last three only where one is known
    labels: str = SEVEN
    lesions: int | None = None
    says: str = ""  # parts of the report
    options: DataOptions = DataOptions()
    fixes: tuple[str, ...] = ()
    source: str = ""  # the table in it that is given


HAM = ("I1,mel,60,male,back; I2,nv,,unknown,ear", SEVEN, 2)
AK, SCC = DataOptions(label_map={"AK": "akiec"}), DataOptions(label_map={"AK": "SCC"})
FIRST_2019 = "I0,nv,55,female,trunk"
NOTES_2019 = "2 rows without lesion_id; --label_map 'ak=akiec'; general 'head/neck' is read as 'face' in 1 rows"
DROPPED, JOINED = "dropped because of drop_unknown_labels; 'ak' is read as 'akiec'", "'ak' is read as 'scc' in 1 rows"
NOTES_2020 = "labels from column benign_malignant; read is train.csv; columns that are not used: patient_id"
GROUPED = "lesions are the rows of one patient_id; target '1' is read as 'mel' in 1 rows"
ARCHIVE = "1 rows whose image_type is not dermoscopic; labels from column diagnosis_3; copyright_license"
OLDER = "lesions unknown; 2 rows without a lesion_id; labels from column diagnosis; 'pigmented benign keratosis'"
READ_AS = "Geschlecht 'm' is read as 'male' in 1 rows; because of invalid_to_missing: localization 1 ('Fuß')"
OWN_WORDS = "Nävus_1,nv,61,male,unknown; Melanom_2,mel,,female,unknown"
TWO_HEADERS = "2,tattoo,50,unknown,unknown; 1,scar,40,unknown,unknown"
DERM7PT = "Nel026,basal cell carcinoma,,female,face; Nel028,blue nevus,,male,lower extremity"
FOLDERS = "test_Melanoma_003,mel; train_Melanoma_001,mel; train_Nevus_001,nv; train_Nevus_002,nv"
TO_2020 = DataOptions({"dx": "target"}, ["nv", "mel"], {"0": "nv", "1": "mel"}, "patient_id")
CLINIC = DataOptions(
    columns={"image_id": "Datei Name", "dx": "Diagnose", "age": "Alter", "sex": "Geschlecht"},
    label_map={"Nävus": "nv", "Melanom": "mel"},
)
ROWS_2020 = "I26,{0},45,male,face; I15,{0},45,female,upper extremity; I52,{1},50,female,lower extremity".format
LAYOUTS = [
    Layout("kaggle", *HAM, "2 image files are copies"),
    Layout("dataverse", *HAM),
    Layout("beside ISIC", *HAM),
    Layout("isic2018", "I1,mel; I2,nv; I3,nv", SEVEN, 2, "diagnosis_confirm_type from; Test_GroundTruth"),
    Layout("isic2018", "T1,mel", says="no row has a value for age, sex, localization", source=TEST_2018),
    Layout("isic2019", f"{FIRST_2019}; I17_downsampled,scc; I73,ak,70,male,face", EIGHT, 3, NOTES_2019),
    Layout("isic2019", f"{FIRST_2019}; I73,akiec,70,male,face", SEVEN, 2, DROPPED, AK, ("drop_unknown_labels",)),
    Layout("isic2019", f"{FIRST_2019}; I17_downsampled,scc; I73,scc,70,male,face", EIGHT[4:], 3, JOINED, SCC),
    Layout("isic2020", ROWS_2020("benign", "malignant"), "benign; malignant", says=NOTES_2020),
    Layout("isic2020", ROWS_2020("nv", "mel"), "nv; mel", 2, GROUPED, TO_2020),
    Layout("archive", "I6,nv,45,male,acral; I7,mel,50,male,lower extremity", SEVEN, 2, ARCHIVE),
    Layout("older archive", "I0,nv,55,female,unknown; I1,bkl", says=OLDER),
    Layout("milk10k", "I2,nv,40,female,trunk; I3,sccka,85,male,face", MILK, 2, "2 rows whose image_type"),
    Layout("pad_ufes", "P15,nev,8,unknown,upper extremity; P46,scc,55,female,neck", "nev; scc", 2),
    Layout("bcn20000", "I3,scar,80,male,face; I4,bcc,75,female,trunk", "bcc; scar", 2),
    Layout("derm7pt", DERM7PT, "basal cell carcinoma; blue nevus", says="has a value for age; seven_point_score"),
    Layout("class folders", FOLDERS, says="is the name of its folder; label 'nevus' is read as 'nv' in 2 rows"),
    Layout("two parts", "test_1,scar; train_1,scar; train_2,tattoo", "scar; tattoo", says="2 tables"),
    Layout("two headers", TWO_HEADERS, "scar; tattoo", says="columns that are not used: new, old"),
    Layout("clinic", OWN_WORDS, says=READ_AS, options=CLINIC, fixes=("invalid_to_missing",)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.corpus)
def test_layout(layout: Layout, tmp_path: Path) -> None:
    source = write(layout.corpus, tmp_path) / layout.source
    dataset, report = load_data(str(source), layout.options, check_images=True, **dict.fromkeys(layout.fixes, True))
    assert report.labels == dataset.features["dx"].names == layout.labels.split("; ")
    assert list(report.class_counts) == report.labels
    assert report.lesions == layout.lesions
    columns = metadata_frame(dataset)[["image_id", "dx", "age", "sex", "localization"]]
    expected = [row if row.count(",") > 1 else f"{row},,unknown,unknown" for row in layout.rows.split("; ")]
    assert columns.to_csv(index=False, header=False, float_format="%g").splitlines() == expected
    for words in layout.says.split("; "):
        assert words in str(report), f"{words!r} is not in\n{report}"
    # The image of a row is the one that was written for it.
    for row in dataset:
        stem = unicodedata.normalize("NFC", Path(row["image"].filename).stem)
        assert row["image_id"].endswith(stem)


JUNK = {
    **dict.fromkeys(("__MACOSX/train/Nevus/._001.jpg", "__MACOSX/._metadata.csv", "__MACOSX/metadata.csv"), b"\0\5"),
    **dict.fromkeys((".git/objects/aa.jpg", ".metadata.csv.swp", "train/.DS_Store", "@eaDir/I1.jpg"), b"x"),
    **dict.fromkeys(("._HAM10000_metadata.csv", "Thumbs.db"), b"x"),
    **dict.fromkeys((".ipynb_checkpoints/metadata.csv", ".ipynb_checkpoints/train-checkpoint.csv"), b"image,dx\n"),
    ".Trash-0/files/ISIC2018_Task3_Training_GroundTruth.csv": b"image,MEL,NV\nI1,1,0\n",
}


@pytest.mark.parametrize(
    "corpus", ["dataverse", "isic2018", "isic2019", "isic2020", "archive", "milk10k", "class folders", "two parts"]
)
def test_junk_changes_nothing(corpus: str, tmp_path: Path) -> None:
    source = write(corpus, tmp_path)
    before = load_data(str(source))
    found = find_images([source])
    for name, data in JUNK.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    after = load_data(str(source))
    assert metadata_frame(after[0]).equals(metadata_frame(before[0]))
    assert after[1] == before[1]
    assert find_images([source]) == found


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    """Of uncompressed images of one size too."""
    for folder, colour in (("images_1", "red"), ("images_2", "green")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (12, 10), colour).save(tmp_path / folder / "I1.bmp")
    text(tmp_path / "HAM10000_metadata.csv", *HAM_ROWS.splitlines()[:2])
    original, copy = (tmp_path / folder / "I1.bmp" for folder in ("images_1", "images_2"))
    for different in (copy.read_bytes(), original.read_bytes() + b"x"):
        copy.write_bytes(different)
        with pytest.raises(Ham10000Error, match="differ; keep the one"):
            load_data(str(tmp_path))
    copy.write_bytes(original.read_bytes())
    assert "1 image files are copies" in str(load_data(str(tmp_path))[1])


@pytest.mark.parametrize("source", [".", "../data", "../data/all.csv"])
def test_a_relative_source_is_read_as_an_absolute_one_is(source: str, tmp_path: Path, monkeypatch) -> None:
    folder = write("two parts", tmp_path / "data")
    (folder / "test" / "1.jpg").write_bytes((folder / "train" / "2.jpg").read_bytes())
    paths = [f"{folder}/{name}.jpg" for name in ("test/1", "train/1", "train/2")]
    text(folder / "all.csv", "path,label", *(f"{path},{number}" for number, path in enumerate(paths)))
    monkeypatch.chdir(folder)
    assert [str(Path(row["image"].filename).resolve()) for row in load_data(source)[0]] == paths


def test_copies_in_two_parts_are_duplicates_and_a_lesion_stays_whole(tmp_path: Path) -> None:
    """As in a mirror whose parts overlap; another photograph of the same name is an image of its own."""
    images(tmp_path, "train/1", "train/2", "test/2", suffix=".png")
    (tmp_path / "test" / "1.png").write_bytes((tmp_path / "train" / "1.png").read_bytes())
    text(tmp_path / "train" / "metadata.csv", "file_name,label,lesion_id", "1.png,nv,1", "2.png,nv,1")
    text(tmp_path / "test" / "metadata.csv", "file_name,label,lesion_id", "1.png,nv,1", "2.png,mel,")
    with pytest.raises(Ham10000Error, match="duplicate image id"):
        load_data(str(tmp_path))
    dataset, _ = load_data(str(tmp_path), drop_duplicates=True)
    rows = metadata_frame(dataset)
    assert sorted(rows["image_id"]) == ["test_1", "test_2", "train_2"]  # the copy that was read first, and the others
    assert rows[rows["dx"] == "nv"]["lesion_id"].tolist() == ["1", "1"]
    assert rows[rows["dx"] == "mel"]["lesion_id"].tolist() == ["test_2"]


def test_class_folders_are_those_of_datasets(tmp_path: Path) -> None:
    source = write("class folders", tmp_path / "data")
    theirs = load_dataset("imagefolder", data_dir=str(source), cache_dir=str(tmp_path / "cache"))
    kind = theirs["train"].features["label"]
    expected = sorted(
        (Path(row["image"].filename).name, kind.int2str(row["label"])) for part in theirs.values() for row in part
    )
    dataset, _ = load_data(str(source), DataOptions(labels=["Melanoma", "Nevus"]))
    names = dataset.features["dx"].names
    assert sorted((Path(row["image"].filename).name, names[row["dx"]]) for row in dataset) == expected


def test_a_dataset_with_labels_of_its_own_keeps_their_names(tmp_path: Path) -> None:
    images(tmp_path, "a", "b")
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["malignant", "benign"])})

    def read(*labels: int) -> tuple[Dataset, DataReport]:
        rows = {"img": ["a.jpg", "b.jpg"], "label": list(labels)}
        table = Dataset.from_dict(rows, features=features).with_format("arrow")[:]
        pq.write_table(table, tmp_path / "d.parquet")
        return load_data(str(tmp_path))

    dataset, report = read(1, 1)
    assert metadata_frame(dataset)["dx"].tolist() == ["benign", "benign"]
    assert dataset["image_id"][:] == ["000001", "000002"]
    assert report.class_counts == {"benign": 2, "malignant": 0}
    with pytest.raises(Ham10000Error, match=r"(?s)unknown label in 1 row.* label = ''"):
        read(0, -1)


def test_without_lesion_ids_leakage_is_unknown(synthetic_folder: Path, tmp_path: Path) -> None:
    frame = metadata_frame(load_data(str(synthetic_folder))[0]).drop(columns="lesion_id")
    frame["file"] = [f"{name}.jpg" for name in frame.pop("image_id")]
    (tmp_path / "images").symlink_to(synthetic_folder)
    frame.to_csv(tmp_path / "own.csv", index=False)
    dataset, _ = load_data(str(tmp_path / "own.csv"))
    with pytest.raises(Ham10000Error, match="--columns lesion_id=COLUMN, group by another with --group_by COLUMN"):
        make_split(dataset)
    split = make_split(dataset, "image-stratified")
    assert split.leakage() == {"validation": {"all": None}, "test": {"all": None}}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("filename,diagnosis,age_approx,gender,site\na.jpg,nv,61,M,head/neck\n", ["61", "male", "face"]),
        ("image_name,age_approx,sex,anatom_site_general_challenge\na,61,female,torso\n", ["61", "female", "trunk"]),
        ("path,age,sex,site\n./a.jpg,61,male,nose\n", ["61", "male", "face"]),
        ("img_id;age;gender;region\na.jpg;61;FEMALE;FOREARM\n", ["61", "female", "upper extremity"]),
        ("isic_id\tage_approx\tsex\tanatom_site_general\na\tn/a\tf\tpalms/soles\n", ["n/a", "female", "acral"]),
    ],
)
def test_training_and_prediction_read_a_row_alike(table: str, expected: list[str], tmp_path: Path) -> None:
    assert set(SITES.values()) <= set(LOCALIZATIONS)
    images(tmp_path, "a")
    path = tmp_path / "t.csv"
    path.write_text(table)
    rows = read_metadata(path, ("age", "sex", "localization"))
    assert [row.metadata for row in rows.rows] == [dict(zip(("age", "sex", "localization"), expected, strict=True))]
    assert not any(note.startswith("warning") for note in rows.notes)
    # The same table with a label.
    header, _, row = table.rstrip("\n").partition("\n")
    mark = next(delimiter for delimiter in "\t;," if delimiter in header)
    path.write_text(f"{header}{mark}dx\n{row}{mark}nv\n")
    frame = metadata_frame(load_data(str(path))[0])
    assert [frame["sex"][0], frame["localization"][0]] == expected[1:]
    assert (frame["age"][0] != frame["age"][0]) == (expected[0] == "n/a")


def test_a_field_without_a_column_is_a_warning_that_lists_the_columns(tmp_path: Path) -> None:
    images(tmp_path, "a")
    path = text(tmp_path / "t.csv", "image,dx,Alter,sex", "a,nv,61,M")
    dataset, report = load_data(str(path))
    assert [dataset[0][name] for name in ("lesion_id", "dx_type", "dataset")] == ["a", "unknown", "unknown"]
    assert report.warnings[0].startswith("no row has a value for age, localization; the columns are ['image', 'dx',")
    with pytest.raises(Ham10000Error, match="there is no column 'Befund'"):
        load_data(str(path), DataOptions(columns={"dx": "Befund"}))
    notes = read_metadata(path, ("age", "sex")).notes
    assert any("warning" in note and "no column for age" in note and "'Alter'" in note for note in notes)
    assert read_metadata(path, ("age", "sex"), {"age": "Alter"}).rows[0].metadata == {"age": "61", "sex": "male"}


def test_a_given_column_settles_which_of_two_it_is(tmp_path: Path) -> None:
    images(tmp_path, "a")
    path = text(tmp_path / "t.csv", "image,label,Label", "a,nv,mel")
    with pytest.raises(Ham10000Error, match="'label' and 'Label' are 'label' twice"):
        load_data(str(path))
    dataset, _ = load_data(str(path), DataOptions({"dx": "label"}))
    assert metadata_frame(dataset)["dx"].tolist() == ["nv"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["alter=Alter"], "field 'alter'"), (["age"], "expected ours=theirs"), (["age=a", "age=b"], "gives 'age' twice")],
)
def test_wrong_columns_are_named(columns: list[str], message: str) -> None:
    with pytest.raises(Ham10000Error, match=message):
        DataOptions.from_texts(columns)


NO_PATIENT, NO_ALTER = DataOptions(group_by="patient"), DataOptions({"age": "Alter"})
NO_SCC = DataOptions(labels=LABELS, label_map={"AK": "akiec"})
TRUTH, OFFICIAL = f"{TRUTH_2018}\n{ONE_HOT}\n", f"HAM10000_metadata.csv\n{HAM_ROWS}"


@pytest.mark.parametrize(
    ("corpus", "options", "table", "message"),
    [
        ("empty", None, "", r"contains nothing, but no table .*synthetic"),
        ("empty", None, "Tabelle.csv\nBild;dx\na.jpg;nv", "no column for image_id; it has"),
        ("class folders", NO_PATIENT, "", r"no column 'patient' to group by; it has \['file_name', 'label'\]"),
        ("class folders", NO_ALTER, "", r"no column 'Alter' \(--columns age=Alter\); it has \['file_name', 'lab"),
        ("isic2019", NO_SCC, "", r"unknown label in 1 row.*'vasc'\], got 'scc'; --label_map.*drop_unknown_labels"),
        ("isic2018", None, f"train_GroundTruth.csv\n{ONE_HOT}", r"several tables of labels.*train_GroundTruth\.csv"),
        ("isic2018", None, f"{TRUTH}I1,0,0,0,0,0,0,0", r"line 2: expected a 1 in one of .* got \['0', '0'"),
        ("isic2018", None, f"{TRUTH}I1,1,0,0,0,0,0,0\nI2,1,1,0,0,0,0,0", "line 3"),
        ("isic2018", None, f"{TRUTH}I1,yes,0,0,0,0,0,0", "'yes'"),
        ("isic2018", None, f"{TRUTH}I1,0.4,0.6,0,0,0,0,0", "'0.4'"),
        ("beside ISIC", None, f"{OFFICIAL}\nH3,I3,nv,,,,,", r"no image file in 1 row.* below HERE \(2 images\)"),
    ],
)
def test_what_is_refused(corpus: str, options: DataOptions | None, table: str, message: str, tmp_path: Path) -> None:
    write(corpus, tmp_path, *filter(None, [table]))
    with pytest.raises(Ham10000Error, match=message.replace("HERE", str(tmp_path))):
        load_data(str(tmp_path), options)
