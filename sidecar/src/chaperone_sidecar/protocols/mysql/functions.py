"""Functions of MySQL and MariaDB, by what a call of them does; one that is not listed is code of somebody's own."""

from __future__ import annotations

from typing import Final

_SAFE: Final = """
abs acos adddate addtime aes_decrypt aes_encrypt any_value ascii asin atan atan2 avg bin bin_to_uuid bit_and
bit_count bit_length bit_or bit_xor cast ceil ceiling char character_length char_length charset coalesce
coercibility collation compress concat concat_ws connection_id conv convert convert_tz cos cot count crc32 crc32c
cume_dist curdate current_date current_role current_time current_timestamp current_user curtime database date
datediff date_add date_format date_sub day dayname dayofmonth dayofweek dayofyear decode default degrees dense_rank
elt encode exp export_set extract extractvalue field find_in_set first_value floor format format_bytes found_rows
from_base64 from_days from_unixtime geometry get_format greatest group_concat grouping hex hour if ifnull
inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr interval is_ipv4 is_ipv6 is_uuid isnull json_array
json_arrayagg json_array_append json_array_insert json_contains json_contains_path json_depth json_detailed
json_exists json_extract json_insert json_keys json_length json_loose json_merge json_merge_patch
json_merge_preserve json_object json_objectagg json_overlaps json_pretty json_query json_quote json_remove
json_replace json_schema_valid json_search json_set json_table json_type json_unquote json_valid json_value lag
last_day last_insert_id last_value lcase lead least left length ln locate localtime localtimestamp log log10 log2
lower lpad ltrim make_set makedate maketime match max md5 median microsecond mid min minute mod month monthname
name_const natural_sort_key now nth_value ntile nullif nvl nvl2 oct octet_length ord percent_rank period_add
period_diff pi point position pow power quarter quote radians rand random_bytes rank regexp_instr regexp_like
regexp_replace regexp_substr repeat replace reverse right round row_count row_number rpad rtrim schema second
sec_to_time session_user sha sha1 sha2 sign sin soundex space sqrt std stddev stddev_pop stddev_samp strcmp
str_to_date st_area st_asgeojson st_astext st_aswkt st_contains st_distance st_distance_sphere st_geomfromtext
st_intersects st_srid st_within st_x st_y subdate substr substring substring_index subtime sum sysdate system_user
tan time timediff timestamp timestampadd timestampdiff time_format time_to_sec to_base64 to_char to_days to_seconds
trim truncate ucase uncompress uncompressed_length unhex unix_timestamp updatexml upper user utc_date utc_time
utc_timestamp uuid uuid_short uuid_to_bin values value variance var_pop var_samp version week weekday weekofyear
weight_string year yearweek
"""
SAFE: Final = frozenset(_SAFE.split())
"""Functions of the server that read nothing but their arguments and the session."""

_WORDS_OF_GRAMMAR: Final = """
adddate bit_and bit_or bit_xor cast count curdate curtime date_add date_sub extract group_concat json_arrayagg
json_objectagg max mid min now position session_user std stddev stddev_pop stddev_samp st_collect subdate substr
substring sum sysdate system_user trim variance var_pop var_samp
"""
ADJACENT: Final = frozenset(_WORDS_OF_GRAMMAR.split())
"""Those that are the server's only where no space is before the parenthesis; else it calls code of that name."""

EXTERNAL: Final = frozenset({"load_file", "sys_exec", "sys_eval", "sys_get", "sys_set", "lib_mysqludf_sys_info"})
"""Functions that reach beyond the server."""

_KEYWORDS: Final = """
in values and or not as on using exists select from join where having by set into key all interval case when then
else between like rlike regexp union except intersect distinct distinctrow limit over partition row rows xor div
mod is binary with use force ignore index primary unique fulltext cross inner outer left right straight_join update
insert replace delete table order group of collate lateral character varchar varbinary decimal dec numeric float
double int integer unsigned
"""
KEYWORDS: Final = frozenset(_KEYWORDS.split())
"""Reserved words, which before a parenthesis call nothing of somebody's own."""

BEFORE_QUERY: Final = frozenset({"any", "some"})
"""Words that call nothing before a query in parentheses; no server reserves them."""
