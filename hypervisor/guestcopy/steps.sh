# The steps of a copy in the guest, each by its name. They say on stdout what the
# host has to know, and fail with one line on stderr.
fail() { echo "$*" >&2; exit 1; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
same() {
	[ "$(stat -c %s "$1")" = "$2" ] || fail "$1 has another size than what was sent: it is changing, or the disk is full"
	[ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$3" ] || fail "$1 has another content than what was sent: it is changing, or was damaged on the way"
}
step=$1
shift
case $step in
push) # KIND DESTINATION BASE TEMPORARY
	d=$(absolute "$2")
	[ ! -L "$d" ] || [ ! -e "$d" ] || d=$(readlink -f "$d")
	if [ -d "$d" ]; then
		[ -n "$3" ] || fail "$d is a directory"
		d=${d%/}/$3
		[ "$1" = dir ] || [ ! -d "$d" ] || fail "$d is a directory"
	else
		case $d in */) fail "$d is not a directory" ;; esac
	fi
	[ "$1" = file ] || [ ! -e "$d" ] || fail "$d exists"
	[ ! -e "$d" ] || [ -f "$d" ] || fail "$d exists, and is not a file"
	p=$(dirname "$d")
	[ -d "$p" ] || fail "$p: no such directory"
	t=${p%/}/$4
	umask 077
	set -C
	: >"$t" || exit 1
	printf '%s\n%s\n' "$d" "$t"
	;;
pushed) # KIND TEMPORARY DESTINATION SIZE SUM MODE MTIME
	same "$2" "$4" "$5"
	if [ "$1" = dir ]; then
		mkdir "$2.dir" && tar -x -p -o -f "$2" -C "$2.dir" || exit 1
		[ ! -e "$3" ] || fail "$3 exists"
		mv -T "$2.dir" "$3" && rm -f "$2"
		exit
	fi
	if [ -e "$3" ]; then
		chown "$(stat -c %u:%g "$3")" "$2"
		chmod "${6:-$(stat -c %a "$3")}" "$2"
	else
		chmod "${6:-$(printf %o $((0666 & ~$(umask))))}" "$2"
	fi
	[ -z "$7" ] || touch -d "@$7" "$2" || exit 1
	sync "$2" 2>/dev/null
	mv -f -T "$2" "$3"
	;;
stat) # PATH
	p=$(absolute "$1")
	stat -L -c '%f %s %Y' "$p" && readlink -f "$p"
	;;
pulled) # PATH SIZE SUM
	same "$@"
	;;
archive) # DIRECTORY TEMPORARY
	umask 077
	for t in /var/tmp /tmp /run; do
		tar -c -f "$t/$2" -C "$1" . && stat -c %s "$t/$2" && echo "$t/$2" && exit
		rm -f "$t/$2"
	done
	exit 1
	;;
clear) # PATH...
	rm -rf -- "$@"
	;;
esac
