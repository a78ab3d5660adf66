use super::*;
use std::fs;

/// The points of the first picture in every example: those of CelebA's first one.
const FIRST: Points = [
    [69.0, 109.0],
    [106.0, 113.0],
    [77.0, 142.0],
    [73.0, 152.0],
    [108.0, 154.0],
];

fn open(name: &str, text: &str) -> Result<Landmarks> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    Landmarks::open(&path)
}

/// The same two pictures in every form.
fn examples() -> Vec<(&'static str, String)> {
    const NUMBERS: &str = "69 109 106 113 77 142 73 152 108 154";
    let tabs = NUMBERS.replace(' ', "\t");
    let commas = NUMBERS.replace(' ', ",");
    let numbers = NUMBERS.replace(' ', ", ");
    let named = "lefteye_x,lefteye_y,righteye_x,righteye_y,nose_x,nose_y,leftmouth_x,leftmouth_y,rightmouth_x,rightmouth_y";
    let pairs = "[[69, 109], [106.0, 113], [77, 142], [73, 152], [108, 154]]";
    let parts = r#""left_eye": [69, 109], "right_eye": [106, 113], "nose": [77, 142], "mouth_left": [73, 152], "mouth_right": [108, 154]"#;
    let second = "11 10 30 10 20 20 12 30 28 30.5";
    vec![
        (
            "plain.txt",
            format!("a b/1.jpg {NUMBERS}\nb\\2.png  {second}\n"),
        ),
        (
            "windows.txt",
            format!("\u{feff}# x\r\na b\\1.jpg {NUMBERS}\r\n\r\n./b/2.png {second}\r\n"),
        ),
        (
            "insightface.txt",
            format!(
                "a b/1.jpg\t{tabs}\nb/2.png\t{}\n",
                second.replace(' ', "\t")
            ),
        ),
        (
            "celeba.txt",
            format!(
                "2\n{}\na b/1.jpg  {NUMBERS}\nb/2.png {second}\n",
                named.replace(',', " ")
            ),
        ),
        (
            "celeba.csv",
            format!(
                "image_id,{named}\na b/1.jpg,{commas}\nb/2.png,{}\n",
                second.replace(' ', ",")
            ),
        ),
        (
            "vggface2.csv",
            format!(
                "NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n\"a b/1\",{commas}\n\"b/2\",{}\n",
                second.replace(' ', ",")
            ),
        ),
        (
            "plain.csv",
            format!(
                "\"a b/1.jpg\",{commas}\nb/2.png,{}\n",
                second.replace(' ', ", ")
            ),
        ),
        (
            "other.csv",
            "score,y0,x0,y1,x1,x2,y2,x3,y3,x4,y4,path,width\n\
                 0.9,109,69,113,106,77,142,73,152,108,154,a b/1.jpg,178\n\
                 0.8,10,11,10,30,20,20,12,30,28,30.5,\"b/2.png\",178\n"
                .to_owned(),
        ),
        (
            "object.json",
            format!(
                "{{\"a b/1.jpg\": {pairs},\n \"b/2.png\": [{}]}}",
                second.replace(' ', ",")
            ),
        ),
        (
            "nested.json",
            format!(
                "{{\"a b/1.jpg\": {{\"box\": [1, 2, 3, 4], {parts}}}, \"b/2.png\": {{\"landmarks\": [{}]}}}}",
                second.replace(' ', ",")
            ),
        ),
        (
            "list.json",
            format!(
                " [{{\"file\": \"a b/1.jpg\", \"kps\": [{pairs}]}}, {{\"image\": \"b/2.png\", \"points\": [{}]}}]\n",
                second.replace(' ', ",")
            ),
        ),
        (
            "lines.jsonl",
            format!(
                "{{\"path\": \"a b/1.jpg\", \"landmarks\": [{numbers}], \"score\": 1}}\n{{\"path\": \"b\\\\2.png\", \"landmarks\": [{}]}}\n",
                second.replace(' ', ",")
            ),
        ),
    ]
}

#[test]
fn every_form_is_read() {
    for (name, text) in examples() {
        let landmarks = open(name, &text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(landmarks.len(), 2, "{name}");
        let place = landmarks
            .find("a b/1.jpg")
            .unwrap_or_else(|| panic!("{name}"));
        assert_eq!(landmarks.points(place), &FIRST, "{name}");
        let place = landmarks
            .find("./b\\2.png")
            .unwrap_or_else(|| panic!("{name}"));
        assert_eq!(landmarks.points(place)[4], [28.0, 30.5], "{name}");
        assert_eq!(landmarks.find("1.jpg"), None, "{name}");
        let unused: Vec<String> = landmarks
            .unused([0])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            unused[0].starts_with("1 line of landmarks without a picture (b/2"),
            "{unused:?}"
        );
        assert_eq!(landmarks.unlike().count, 0, "{name}");
    }
}

#[test]
fn what_cannot_be_meant_is_an_error_with_its_line() {
    let good = "a.jpg 69 109 106 113 77 142 73 152 108 154\n";
    for (line, found) in [
        (
            "b.jpg 69 109 106 113 77 142 73 152 108",
            "10 fields instead of 11",
        ),
        (
            "b.jpg 69 109 106 113 77 142 73 152 108 x",
            "\"x\" where a coordinate belongs",
        ),
        (
            "b.jpg 69 109 106 NaN 77 142 73 152 108 154",
            "the coordinate NaN for \"b.jpg\"",
        ),
        (
            "b.jpg 69 109 106 inf 77 142 73 152 108 154",
            "the coordinate inf",
        ),
        (
            "b.jpg 69 109 106 -1e9 77 142 73 152 108 154",
            "the coordinate -1000000000",
        ),
        ("b.jpg 7 8 7 8 7 8 7 8 7 8", "five times the same point"),
        (
            "a.jpg 69 109 106 113 77 142 73 152 108 155",
            "\"a.jpg\" for the second time",
        ),
        (
            ".\\a.jpg 69 109 106 113 77 142 73 152 108 155",
            "for the second time",
        ),
        ("69 109 106 113 77 142 73 152 108 154", "10 fields"),
        ("\t1\t2\t3\t4\t5\t6\t7\t8\t9\t11", "no path"),
        ("b.jpg,1,2,3,4,5,6,7,8,9", "10 fields"),
        ("\"b.jpg,1,2,3,4,5,6,7,8,9,10", "a quote without an end"),
    ] {
        let error = open("a.txt", &format!("{good}\n{line}\n"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("a.txt, byte 44:") && error.contains("in line 3"),
            "{error}"
        );
        assert!(error.contains(found), "{found}: {error}");
    }
    let json = |text: &str| open("a.json", text).unwrap_err().to_string();
    for (text, found) in [
        (
            "{\"a.jpg\": [1, 2],\n\"b.jpg\": 3}",
            "in line 1 points that are neither",
        ),
        (
            "{\"a.jpg\": [[1,2],[3,4],[2,5],[1,7],[3,8]],\n\"b.jpg\": [[7,8],[7,8],[7,8],[7,8],[7,8]]}",
            "in line 2 five times the same point",
        ),
        (
            "{\"a.jpg\": [[1,2],[3,4],[2,5],[1,7],[3,8]],\n\"a.jpg\": [[1,2],[3,4],[2,5],[1,7],[3,9]]}",
            "in line 2 \"a.jpg\" for the second time",
        ),
        (
            "{\"a.jpg\": [[[1,2],[3,4],[2,5],[1,7],[3,8]],[[1,2],[3,4],[2,5],[1,7],[3,9]]]}",
            "2 faces where one belongs",
        ),
        ("{\"a.jpg\": [1,2,3,4,5,6,7,8,9,NaN]}", "is not JSON"),
        ("[{\"file\": \"a.jpg\"}]", "no points"),
        ("[{\"points\": [1,2,3,4,5,6,7,8,9,10]}]", "without one path"),
        ("[3]", "no object"),
        ("[]", "holds no landmarks"),
        ("{\"a.jpg\": ", "is not JSON"),
    ] {
        let error = json(text);
        assert!(error.contains(found), "{found}: {error}");
    }
    let heading = |text: &str| open("a.csv", text).unwrap_err().to_string();
    let error = heading("path,x1,y1,x2,y2,x3,y3,x4,y4,x5\na,1,2,3,4,5,6,7,8,9\n");
    assert!(
        error.contains("does not name x and y of five points"),
        "{error}"
    );
    let error = heading("path,x1,y1,x2,y2,x3,y3,x4,y4,x5,x5,y5\n");
    assert!(error.contains("a second column \"x5\""), "{error}");
    assert!(heading("").contains("holds no landmarks"));
}

#[test]
fn exchanged_sides_are_counted() {
    let text =
        "a.jpg 106 113 69 109 77 142 108 154 73 152\nb.jpg 69 109 106 113 77 142 73 152 108 154\n";
    let found = open("a.txt", text).unwrap();
    let expected = Unlike {
        count: 1,
        first: "a.jpg".into(),
    };
    assert_eq!(found.unlike(), &expected);
}

/// The same faces as MTCNN writes them: all x, then all y.
#[test]
fn all_x_before_all_y_is_refused_unless_it_is_said() {
    let faces: Vec<Points> = vec![
        FIRST,
        TEMPLATE,
        // In profile, and large in a large photo.
        [
            [60.0, 52.0],
            [73.5, 51.5],
            [88.0, 71.0],
            [62.0, 92.0],
            [70.0, 92.0],
        ],
        FIRST.map(|point| point.map(|x| 9.0 * x + 800.0)),
    ];
    let numbers = |points: &Points, between: &str| {
        let axis = |axis: usize| points.iter().map(move |point| point[axis].to_string());
        axis(0).chain(axis(1)).collect::<Vec<_>>().join(between)
    };
    let lines = |between: &str| -> String {
        let lines = faces.iter().enumerate();
        let line = |(i, points)| format!("{i}.jpg{between}{}\n", numbers(points, between));
        lines.map(line).collect()
    };
    let said = "gives all x before all y, as MTCNN does, for 4 of 4 faces";
    for (name, text) in [
        ("a.txt", lines(" ")),
        ("a.tsv", lines("\t")),
        ("a.csv", lines(",")),
    ] {
        let error = open(name, &text).unwrap_err().to_string();
        assert!(
            error.contains(said) && error.contains("path x1 x2"),
            "{error}"
        );
        for between in [" ", "\t", ","] {
            let heading = "path x1 x2 x3 x4 x5 y1 y2 y3 y4 y5".replace(' ', between);
            let landmarks = open(name, &format!("{heading}\n{text}")).unwrap();
            for (face, place) in faces.iter().zip(0..) {
                assert_eq!(landmarks.points(place), face, "{name}");
            }
        }
    }
    let members: Vec<String> = (faces.iter().enumerate())
        .map(|(i, points)| format!("\"{i}.jpg\": [{}]", numbers(points, ", ")))
        .collect();
    let error = open("a.json", &format!("{{{}}}", members.join(", ")));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains(said) && error.contains("five lists"),
        "{error}"
    );
    // One face among others is only looked for.
    let good = "x.jpg 69 109 106 113 77 142 73 152 108 154\n";
    let one = format!("{good}{}{}", lines(" ").lines().next().unwrap(), "\n");
    assert_eq!(open("a.txt", &one).unwrap().len(), 2);
}

#[test]
fn pictures_are_found_by_name_by_path_and_from_the_folder_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("points.txt");
    let numbers = "69 109 106 113 77 142 73 152 108 154";
    fs::write(&path, format!("ann/1.jpg {numbers}\n")).unwrap();
    let landmarks = Landmarks::open(&path).unwrap();
    let below = dir.path().join("ann/1.jpg");
    assert_eq!(landmarks.find_file("1.jpg", &below), Some(0));
    assert_eq!(
        landmarks.find_file("1.jpg", Path::new("ann/1.jpg")),
        Some(0)
    );
    assert_eq!(
        landmarks.find_file("ann/1.jpg", Path::new("x/ann/1.jpg")),
        Some(0)
    );
    assert_eq!(landmarks.find_file("1.jpg", Path::new("bob/1.jpg")), None);
}

#[test]
fn damaged_files_are_errors_or_other_landmarks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("points");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        if let Ok(landmarks) = Landmarks::open(&path) {
            assert!(landmarks.find(landmarks.first()).is_some());
            let points = (0..landmarks.len() as u32).flat_map(|place| *landmarks.points(place));
            assert!(points.flatten().all(f64::is_finite));
        }
    };
    for (_, text) in examples() {
        let whole = text.as_bytes();
        for at in 0..whole.len() {
            open(&whole[..at]);
            for byte in *b"\"\t" {
                let mut damaged = whole.to_vec();
                damaged[at] = byte;
                open(&damaged);
            }
        }
    }
    open("[".repeat(100_000).as_bytes());
    open(format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes());
}
