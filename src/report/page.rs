//! A page that stands on its own: one HTML file, everything in it, light and dark, fit for print.

use super::figure::stylesheet;
use super::markup::escape;
use crate::encoding::base64::base64;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;

/// The quality of pictures in a page, as JPEG counts it.
const QUALITY: u8 = 92;

/// A picture inside the page that shows it.
pub fn data_uri(picture: &RgbImage) -> String {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode_image(picture)
        .expect("an RGB picture is written to memory");
    format!("data:image/jpeg;base64,{}", base64(&jpeg))
}

/// The page: its title and what is in its body, as HTML.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{}{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title),
        stylesheet()
    )
}

const STYLE: &str = "\
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}
h2{font-size:20px;margin:44px 0 10px;padding-top:14px;border-top:1px solid var(--grid)}
h3{font-size:15px;margin:24px 0 8px}
p{margin:8px 0;max-width:78ch}
.lead,.grey,small{color:var(--grey)}
small{font-size:12px}
nav a{margin-right:14px}
a{color:var(--s0)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:18px 0;font-size:14px}
dt{color:var(--grey)}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px;margin:12px 0}
th,td{padding:6px 12px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap;vertical-align:top}
th{font-weight:600;color:var(--grey);vertical-align:bottom}
th:first-child,td:first-child{padding-left:0}
.name{text-align:left}
tr.main td{font-weight:600}
tr.main td small{font-weight:400}
tr.first td{border-top:1px solid var(--grey)}
td small,th small{display:block;font-weight:400}
.untold{color:var(--grey)}
svg.figure{display:block;width:100%;max-width:860px;height:auto;margin:12px 0}
.pairs{display:flex;flex-wrap:wrap;gap:16px 18px;margin:8px 0 4px}
.pairs figure{margin:0}
.pairs img{display:inline-block;width:112px;height:112px;object-fit:contain;vertical-align:top}
.pairs .faces{display:flex;gap:2px;padding:2px;border-radius:4px;background:var(--mark)}
.pairs figcaption{display:flex;justify-content:space-between;font-size:12px;font-variant-numeric:tabular-nums}
.right{--mark:var(--s0)}
.wrong{--mark:var(--s1)}
h3.right,h3.wrong{color:var(--mark)}
footer{margin-top:48px;padding-top:14px;border-top:1px solid var(--grid);font-size:13px;color:var(--grey)}
@media print{
body{font-size:10pt}
main{max-width:none;padding:0}
nav{display:none}
h2{break-before:auto}
h2,h3{break-after:avoid}
svg.figure,.pairs figure,table tr{break-inside:avoid}
svg.figure{width:100%;max-width:620px}
.wide{overflow:visible}
table{font-size:8pt}
th,td{padding:3px 6px}
.pairs img{width:78px;height:78px}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_place() {
        let page = document("<script>\"&\"\u{1}", "");
        assert!(page.contains("<title>&lt;script&gt;&quot;&amp;&quot;\u{fffd}</title>"));
    }
}
